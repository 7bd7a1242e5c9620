// Thumbnails of the visible tiles, loaded a few at a time.

import { RequestFailed } from "./api_client.js";

const MAX_REQUESTS = 4;
const MAX_THUMBNAILS = 600;

/** Create the loader. observe(item, target): loads the `thumbnail` of an item when `target` comes near the screen. onLoaded(item): it was loaded. */
export function createThumbnails(api, { onLoaded }) {
  const observed = new Map(); // target -> item
  const waiting = new Set();
  const loaded = [];
  let numRequests = 0;
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const item = observed.get(target);
      if (isIntersecting) waiting.add(item);
      else waiting.delete(item); // scrolled past before its turn
    }
    next();
  }, { rootMargin: "300px" });

  async function next() {
    while (numRequests < MAX_REQUESTS && waiting.size > 0) {
      const [item] = waiting;
      waiting.delete(item);
      numRequests++;
      load(item).finally(() => {
        numRequests--;
        next();
      });
    }
  }

  async function load(item) {
    if (item.thumbnail || item.problem) return;
    try {
      item.thumbnail = URL.createObjectURL(await api.thumbnail(item.number));
      loaded.push(item);
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      if (error.status === 503 || error.status === 0) return; // the next draw of the tile tries again
      item.problem = error.message;
    }
    onLoaded(item);
    if (loaded.length > MAX_THUMBNAILS) release(loaded.shift());
  }

  function release(item) {
    URL.revokeObjectURL(item.thumbnail);
    item.thumbnail = "";
    onLoaded(item);
  }

  return {
    observe(item, target) {
      if (item.status !== "ok" || item.thumbnail || item.problem) return;
      observed.set(target, item);
      observer.observe(target);
    },
    /** Release all thumbnails of the previous list. */
    clear() {
      observer.disconnect();
      observed.clear();
      waiting.clear();
      for (const item of loaded.splice(0)) URL.revokeObjectURL(item.thumbnail);
    },
  };
}
