// The images of this session: scored one after another, and kept as far as the browser's memory is bounded.

import { Refused } from "./api_client.js";
import { drawnMap, enlarged, readMap } from "./heat_map.js";

const KEEP_PICTURES = 40;
const KEEP_ITEMS = 2000;
const THUMBNAIL = 240;
const OPACITY = 0.6;

/**
 * A queue of files and what came of them.
 *
 * service: to score with. onItem(item): an image has its verdict, or its error; an item is as the gallery takes it, with the
 * other columns of a row, and `picture` (a Blob), `map` (as `readMap` gives it) or, where the service had to lay the map over
 * the image, `isDrawn`. onLeft(item): it was dropped, being too old. onProgress({done, total, words}): the queue moved.
 */
export class Session {
  #waiting = [];
  #done = 0;
  #total = 0;
  #isRunning = false;
  #stop = new AbortController();
  #pictured = [];
  #items = [];

  constructor(service, { onItem, onLeft, onProgress }) {
    Object.assign(this, { service, onItem, onLeft, onProgress });
  }

  /** Score files by a model. */
  add(files, { model, version }) {
    this.#waiting.push(...files.map((file) => ({ file, model, version })));
    this.#total += files.length;
    this.#tell("");
    if (!this.#isRunning) this.#run();
  }

  /** Leave what waits unscored. */
  stop() {
    this.#waiting = [];
    this.#stop.abort(new DOMException("stopped", "AbortError"));
  }

  /** Forget all images. */
  clear() {
    for (const item of this.#items) forget(item);
    this.#items = [];
    this.#pictured = [];
  }

  async #run() {
    this.#isRunning = true;
    this.#stop = new AbortController();
    while (this.#waiting.length > 0) {
      const next = this.#waiting.shift();
      this.#tell(next.file.name);
      try {
        this.#keep(await this.#scored(next));
      } catch (error) {
        if (error.name !== "AbortError") this.#keep(failed(next.file.name, "internal", `The page failed on this image: ${error.message}`));
      }
      this.#done++;
      this.#tell("");
    }
    this.#isRunning = false;
    this.#done = this.#total = 0;
    this.#tell("");
  }

  #tell(words) {
    this.onProgress({ done: this.#done, total: this.#total, words });
  }

  #keep(item) {
    this.#items.push(item);
    if (item.picture) this.#pictured.push(item);
    if (this.#pictured.length > KEEP_PICTURES) Object.assign(this.#pictured.shift(), { picture: null, map: null });
    this.onItem(item);
    if (this.#items.length > KEEP_ITEMS) {
      const oldest = this.#items.shift();
      this.onLeft(oldest);
      forget(oldest);
    }
  }

  async #scored({ file, model, version }) {
    let bytes;
    try {
      bytes = await file.arrayBuffer();
    } catch {
      return failed(file.name, "unreadable", "This file cannot be read: it was moved meanwhile, or is a folder.");
    }
    const bitmap = has16Bits(bytes) ? null : await createImageBitmap(new Blob([bytes])).catch(() => null);
    try {
      const wanted = bitmap === null ? "overlay" : "map";
      const { path, map, overlay, ...row } = await this.service.score(bytes, file.name, { model, version, [wanted]: true }, {
        signal: this.#stop.signal,
        onWait: (seconds) => this.#tell(`the service is busy, asking again in ${seconds} s`),
      });
      const item = { ...row, name: file.name, label: "", thumbnail: "", picture: null, map: null, isDrawn: false };
      if (item.status === "ok") {
        item.map = map ? await readMap(map) : null;
        item.isDrawn = bitmap === null;
        item.picture = bitmap === null ? new Blob([Uint8Array.from(atob(overlay), (c) => c.charCodeAt(0))], { type: "image/png" }) : file;
      }
      item.thumbnail = await thumbnailOf(bitmap ?? (item.picture && (await createImageBitmap(item.picture))), item);
      return item;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      return failed(file.name, error.status === 413 ? "too_large" : "internal", error.message);
    } finally {
      bitmap?.close();
    }
  }
}

function forget(item) {
  URL.revokeObjectURL(item.thumbnail);
}

function failed(name, status, message) {
  return {
    name, sha256: "", status, verdict: "", score: null, threshold: null, p_value: null, width: null, height: null, regions: [],
    model: "", message, label: "", thumbnail: "", picture: null, map: null, isDrawn: false,
  };
}

/** Whether bytes are a PNG of 16 bits, which the browser would show by another white than the service scores it with. */
function has16Bits(bytes) {
  const head = new Uint8Array(bytes, 0, Math.min(25, bytes.byteLength));
  return head.length === 25 && head[0] === 0x89 && head[1] === 0x50 && head[24] === 16;
}

async function thumbnailOf(bitmap, { map, threshold }) {
  if (!bitmap) return "";
  const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = new OffscreenCanvas(width, height);
  const drawing = canvas.getContext("2d");
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, width, height);
  if (map) {
    drawing.globalAlpha = OPACITY;
    drawing.drawImage(drawnMap(enlarged(map, { width, height }), { width, height, threshold }).heat, 0, 0);
  }
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/webp", quality: 0.8 }));
}
