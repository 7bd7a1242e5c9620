// What the page asks of a run under review, through an `Asker`.

import { readMap } from "./heat_map.js";

export class Run {
  constructor(asker) {
    this.asker = asker;
  }

  /** What the run is, promises and counts. */
  async card() {
    return (await this.asker.ask("/api/run", {})).json();
  }

  /** Begin to compare the run's files with its manifest; gives {state, message}. */
  async check() {
    return (await this.asker.ask("/api/run/check", { method: "POST" })).json();
  }

  /** Rows that pass a filter: {total, items, counts}. */
  async rows(query) {
    return (await this.asker.ask(`/api/rows?${new URLSearchParams(query)}`, {})).json();
  }

  /** All rows that pass a filter as a CSV file, a Blob. */
  async table({ verdict, mark, text }) {
    return (await this.asker.ask(`/api/rows.csv?${new URLSearchParams({ verdict, mark, text })}`, {})).blob();
  }

  /** A small picture of an image, a Blob. */
  async thumbnail(number) {
    return (await this.asker.ask(`/api/images/${number}/thumbnail`, {})).blob();
  }

  /** A picture of an image, a Blob. */
  async picture(number) {
    return (await this.asker.ask(`/api/images/${number}/picture`, {})).blob();
  }

  /** The map of an image, as `readMap` gives it, and a note for the person who looks at it. */
  async map(number) {
    const { note, ...map } = await (await this.asker.ask(`/api/images/${number}/map`, {})).json();
    return { map: await readMap(map), note };
  }

  /** Mark an image, or take its mark away; gives {mark, counts}. */
  async mark(number, mark) {
    const headers = { "Content-Type": "application/json" };
    return (await this.asker.ask(`/api/images/${number}/mark`, { method: "PUT", headers, body: JSON.stringify({ mark }) })).json();
  }
}
