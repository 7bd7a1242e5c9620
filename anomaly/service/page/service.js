// What the page asks of the service: its models, their cards and the scores of images; with a token where one is wanted.

const TOKEN = "anomaly-token";
const MOST_WAITS = 60;

/** A request that was refused, or that nothing answered; `message` is for a person, `status` is 0 where nothing answered. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * The service that this page came from.
 *
 * askToken(wasWrong): gives a promise of the token that a person typed.
 */
export class Service {
  #asking = null;

  constructor(askToken) {
    this.askToken = askToken;
  }

  /** The models, as [{name, version, state, reason}]. */
  async models() {
    return (await this.#ask("/v2/repository/index", { method: "POST" })).json();
  }

  /** The card of a model: the parameters of its metadata. */
  async card(name, version) {
    const path = `/v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
    return (await (await this.#ask(path, {})).json()).parameters;
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
      const answer = await this.#ask(`/score?${new URLSearchParams(options)}`, { method: "POST", body: form, signal }, [503, 400, 413, 415, 500]);
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

  /** Ask for a token, once for all requests that lack it. */
  async #newToken(wasWrong) {
    this.#asking ??= this.askToken(wasWrong).finally(() => (this.#asking = null));
    sessionStorage.setItem(TOKEN, await this.#asking);
  }

  async #ask(path, request, expected = []) {
    for (;;) {
      const token = sessionStorage.getItem(TOKEN);
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      let answer;
      try {
        answer = await fetch(path, { ...request, headers, cache: "no-store" });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Refused("The service does not answer. It may have been stopped, or the file is larger than it takes.", 0);
      }
      if (answer.status === 401) {
        if (token === sessionStorage.getItem(TOKEN)) await this.#newToken(token !== null); // else another request has asked
        continue;
      }
      if (answer.ok || expected.includes(answer.status)) return answer;
      throw new Refused((await answer.json()).error, answer.status);
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
