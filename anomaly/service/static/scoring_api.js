// The scoring API of the service: its models, their cards and the scores of images.

import { RequestFailed } from "./api_client.js";

const MAX_RETRIES = 60;

/** The service of this page, called through an `ApiClient`. */
export class ScoringApi {
  constructor(client) {
    this.client = client;
  }

  /** List the models: [{name, version, state, reason}]. */
  async models() {
    return (await this.client.fetch("/v2/repository/index", { method: "POST" })).json();
  }

  /** Return the card of a model: the parameters of its metadata. */
  async card(name, version) {
    const path = `/v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
    return (await (await this.client.fetch(path, {})).json()).parameters;
  }

  /**
   * Score one image file; returns its row, also if the image cannot be scored.
   *
   * bytes, name: content and name of the file. options: query of `POST /score`. onWait(seconds): called if the service is busy.
   */
  async score(bytes, name, options, { signal, onWait }) {
    const form = new FormData();
    form.append("image", new Blob([bytes]), name);
    for (let retry = 0; ; retry++) {
      const response = await this.client.fetch(`/score?${new URLSearchParams(options)}`, { method: "POST", body: form, signal }, [503, 400, 413, 415, 500]);
      if (response.status === 503 && retry < MAX_RETRIES) {
        const seconds = Math.min(30, Math.max(1, Number(response.headers.get("retry-after")) || 1));
        onWait(seconds);
        await pause(1000 * seconds, signal);
        continue;
      }
      const content = await response.json();
      if (content.status === undefined) throw new RequestFailed(content.error, response.status);
      return content;
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
