// What the page asks of the service: its models, their cards and the scores of images.

import { Refused } from "./api_client.js";

const MOST_WAITS = 60;

/** The service that this page came from, asked through an `Asker`. */
export class Service {
  constructor(asker) {
    this.asker = asker;
  }

  /** The models, as [{name, version, state, reason}]. */
  async models() {
    return (await this.asker.ask("/v2/repository/index", { method: "POST" })).json();
  }

  /** The card of a model: the parameters of its metadata. */
  async card(name, version) {
    const path = `/v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
    return (await (await this.asker.ask(path, {})).json()).parameters;
  }

  /**
   * Score one image file.
   *
   * bytes, name: of the file. options: query of `POST /score`. onWait(seconds): called when the service is busy.
   * Gives the row, also that of an image which cannot be scored.
   */
  async score(bytes, name, options, { signal, onWait }) {
    const form = new FormData();
    form.append("image", new Blob([bytes]), name);
    for (let wait = 0; ; wait++) {
      const answer = await this.asker.ask(`/score?${new URLSearchParams(options)}`, { method: "POST", body: form, signal }, [503, 400, 413, 415, 500]);
      if (answer.status === 503 && wait < MOST_WAITS) {
        const seconds = Math.min(30, Math.max(1, Number(answer.headers.get("retry-after")) || 1));
        onWait(seconds);
        await pause(1000 * seconds, signal);
        continue;
      }
      const said = await answer.json();
      if (said.status === undefined) throw new Refused(said.error, answer.status);
      return said;
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
