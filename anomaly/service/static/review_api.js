// The review API: the run, its rows, images, maps and labels.

import { readMap } from "./heat_map.js";

/** The run under review, read and labelled through an `ApiClient`; rows are read after all pending labels are saved. */
export class ReviewApi {
  #pendingLabels = Promise.resolve();

  constructor(client) {
    this.client = client;
  }

  /** Return the card of the run: settings, guarantees and counts. */
  async card() {
    return (await this.client.fetch("/api/run", {})).json();
  }

  /** Start to compare the run's files with its manifest; returns {state, message}. */
  async check() {
    return (await this.client.fetch("/api/run/check", { method: "POST" })).json();
  }

  /** Return one page of the rows that pass a filter: {total, items, counts}. */
  async rows(query) {
    await this.#pendingLabels;
    return (await this.client.fetch(`/api/rows?${new URLSearchParams(query)}`, {})).json();
  }

  /** Return all rows that pass a filter as a CSV file (Blob). */
  async table({ verdict, label, text }) {
    await this.#pendingLabels;
    return (await this.client.fetch(`/api/rows.csv?${new URLSearchParams({ verdict, label, text })}`, {})).blob();
  }

  /** Return the thumbnail of an image (Blob). */
  async thumbnail(number) {
    return (await this.client.fetch(`/api/images/${number}/thumbnail`, {})).blob();
  }

  /** Return an image for display (Blob). */
  async picture(number) {
    return (await this.client.fetch(`/api/images/${number}/picture`, {})).blob();
  }

  /** Return the anomaly map of an image in the form of `readMap`, and a note for the reviewer. */
  async map(number) {
    const { note, ...map } = await (await this.client.fetch(`/api/images/${number}/map`, {})).json();
    return { map: await readMap(map), note };
  }

  /** Return the picture of the nearest good patches (Blob); null if the run has none. */
  async evidence(number) {
    const response = await this.client.fetch(`/api/images/${number}/evidence`, {});
    return response.status === 204 ? null : response.blob();
  }

  /** Set or remove the label of an image after the previous ones; returns {label, counts}. */
  label(number, label) {
    const saved = this.#pendingLabels.then(() => this.#saveLabel(number, label));
    this.#pendingLabels = saved.catch(() => {}); // the caller handles the error
    return saved;
  }

  async #saveLabel(number, label) {
    const headers = { "Content-Type": "application/json" };
    const request = { method: "PUT", headers, body: JSON.stringify({ label }) };
    return (await this.client.fetch(`/api/images/${number}/label`, request)).json();
  }
}
