// Small pictures of the tiles that are on the screen, a few asked for at a time.

import { Refused } from "./api_client.js";

const AT_ONCE = 4;
const KEEP = 600;

/** Give look(item, place): when `place` comes near the screen the item gets its `thumbnail`. onLoaded(item): it is there. */
export function createThumbnails(run, { onLoaded }) {
  const wanted = new Map(); // place -> item
  const waiting = new Set();
  const kept = [];
  let numAsked = 0;
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      const item = wanted.get(target);
      if (isIntersecting) waiting.add(item);
      else waiting.delete(item); // scrolled past before its turn came
    }
    next();
  }, { rootMargin: "300px" });

  async function next() {
    while (numAsked < AT_ONCE && waiting.size > 0) {
      const [item] = waiting;
      waiting.delete(item);
      numAsked++;
      load(item).finally(() => {
        numAsked--;
        next();
      });
    }
  }

  async function load(item) {
    if (item.thumbnail || item.problem) return;
    try {
      item.thumbnail = URL.createObjectURL(await run.thumbnail(item.number));
      kept.push(item);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 503 || error.status === 0) return; // it is asked for when it is next drawn
      item.problem = error.message;
    }
    onLoaded(item);
    if (kept.length > KEEP) forget(kept.shift());
  }

  function forget(item) {
    URL.revokeObjectURL(item.thumbnail);
    item.thumbnail = "";
    onLoaded(item);
  }

  return {
    look(item, place) {
      if (item.status !== "ok" || item.thumbnail || item.problem) return;
      wanted.set(place, item);
      watch.observe(place);
    },
    /** The list is another: nothing of the old one is wanted. */
    clear() {
      watch.disconnect();
      wanted.clear();
      waiting.clear();
      for (const item of kept.splice(0)) URL.revokeObjectURL(item.thumbnail);
    },
  };
}
