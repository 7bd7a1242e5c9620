// The images of this page, scored one after another; the number of stored pictures and items is limited.

import { RequestFailed } from "./api_client.js";
import { enlargeMap, readMap, renderMap } from "./heat_map.js";

const MAX_PICTURES = 40;
const MAX_ITEMS = 2000;
const THUMBNAIL_SIDE = 240;
const OPACITY = 0.6;

/**
 * A queue of files and their items.
 *
 * api: scoring API. onItem(item): an image was scored or failed. onDrop(item): the oldest item was dropped.
 * onProgress({done, total, text}): the progress changed.
 *
 * An item has the form of tile_grid.js and the other columns of a row. It also has `picture` (a Blob) and `map` (in the
 * form of `readMap`). `isOverlay` means that the service drew the map into the picture.
 */
export class ScoringQueue {
  #waiting = [];
  #done = 0;
  #total = 0;
  #isRunning = false;
  #abort = new AbortController();
  #withPicture = [];
  #items = [];

  constructor(api, { onItem, onDrop, onProgress }) {
    Object.assign(this, { api, onItem, onDrop, onProgress });
  }

  /** Add files to be scored by a model. */
  add(files, { model, version }) {
    this.#waiting.push(...files.map((file) => ({ file, model, version })));
    this.#total += files.length;
    this.#report("");
    if (!this.#isRunning) this.#run();
  }

  /** Drop the waiting files and abort the running request. */
  stop() {
    this.#waiting = [];
    this.#abort.abort(new DOMException("stopped", "AbortError"));
  }

  /** Delete all items. */
  clear() {
    for (const item of this.#items) releaseThumbnail(item);
    this.#items = [];
    this.#withPicture = [];
  }

  async #run() {
    this.#isRunning = true;
    this.#abort = new AbortController();
    while (this.#waiting.length > 0) {
      const next = this.#waiting.shift();
      this.#report(next.file.name);
      try {
        this.#store(await this.#score(next));
      } catch (error) {
        if (error.name !== "AbortError") this.#store(failedItem(next.file.name, "internal", `The page failed on this image: ${error.message}`));
      }
      this.#done++;
      this.#report("");
    }
    this.#isRunning = false;
    this.#done = this.#total = 0;
    this.#report("");
  }

  #report(text) {
    this.onProgress({ done: this.#done, total: this.#total, text });
  }

  #store(item) {
    this.#items.push(item);
    if (item.picture) this.#withPicture.push(item);
    if (this.#withPicture.length > MAX_PICTURES) Object.assign(this.#withPicture.shift(), { picture: null, map: null });
    this.onItem(item);
    if (this.#items.length > MAX_ITEMS) {
      const oldest = this.#items.shift();
      this.onDrop(oldest);
      releaseThumbnail(oldest);
    }
  }

  async #score({ file, model, version }) {
    let bytes;
    try {
      bytes = await file.arrayBuffer();
    } catch {
      return failedItem(file.name, "unreadable", "This file cannot be read: it was moved, or it is a folder.");
    }
    const bitmap = has16Bits(bytes) ? null : await createImageBitmap(new Blob([bytes])).catch(() => null);
    try {
      const addition = bitmap === null ? "overlay" : "map";
      const { path, map, overlay, ...row } = await this.api.score(bytes, file.name, { model, version, [addition]: true }, {
        signal: this.#abort.signal,
        onWait: (seconds) => this.#report(`the service is busy, next attempt in ${seconds} s`),
      });
      const item = { ...row, name: file.name, label: "", thumbnail: "", picture: null, map: null, isOverlay: false };
      if (item.status === "ok") {
        item.map = map ? await readMap(map) : null;
        item.isOverlay = bitmap === null;
        item.picture = bitmap === null ? new Blob([Uint8Array.from(atob(overlay), (c) => c.charCodeAt(0))], { type: "image/png" }) : file;
      }
      item.thumbnail = await thumbnailOf(bitmap ?? (item.picture && (await createImageBitmap(item.picture))), item);
      return item;
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      return failedItem(file.name, error.status === 413 ? "too_large" : "internal", error.message);
    } finally {
      bitmap?.close();
    }
  }
}

function releaseThumbnail(item) {
  URL.revokeObjectURL(item.thumbnail);
}

function failedItem(name, status, message) {
  return {
    name, sha256: "", status, verdict: "", score: null, threshold: null, p_value: null, width: null, height: null, regions: [],
    model: "", message, label: "", thumbnail: "", picture: null, map: null, isOverlay: false,
  };
}

/** Whether a file is a 16-bit PNG; the browser uses another white level than the service. */
function has16Bits(bytes) {
  const head = new Uint8Array(bytes, 0, Math.min(25, bytes.byteLength));
  return head.length === 25 && head[0] === 0x89 && head[1] === 0x50 && head[24] === 16;
}

async function thumbnailOf(bitmap, { map, threshold }) {
  if (!bitmap) return "";
  const scale = Math.min(1, THUMBNAIL_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  if (map) {
    context.globalAlpha = OPACITY;
    context.drawImage(renderMap(enlargeMap(map, { width, height }), { width, height, threshold }).heat, 0, 0);
  }
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/webp", quality: 0.8 }));
}
