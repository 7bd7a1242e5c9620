// What the page asks of a run under review, through an `Asker`.

import { readMap } from "./heat_map.js";

export class Run {
  constructor(asker) {
    this.asker = asker;
  }

  /** What the run is, guarantees and counts. */
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
  async table({ verdict, label, text }) {
    return (await this.asker.ask(`/api/rows.csv?${new URLSearchParams({ verdict, label, text })}`, {})).blob();
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

  /** Label an image, or take its label away; gives {label, counts}. */
  async label(number, label) {
    const headers = { "Content-Type": "application/json" };
    return (await this.asker.ask(`/api/images/${number}/label`, { method: "PUT", headers, body: JSON.stringify({ label }) })).json();
  }
}
