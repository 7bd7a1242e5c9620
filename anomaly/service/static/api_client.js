// Requests to where this page came from; with a token where one is wanted.

const TOKEN = "anomaly-token";

/** A request that was refused, or that nothing answered; `message` is for a person, `status` is 0 where nothing answered. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Asks, and asks a person for the token where there has to be one.
 *
 * askToken(wasWrong): gives a promise of the token that a person typed.
 */
export class Asker {
  #asking = null;

  constructor(askToken) {
    this.askToken = askToken;
  }

  /** Fetch an address; a status that is neither good nor expected becomes `Refused`. */
  async ask(path, request, expected = []) {
    for (;;) {
      const token = sessionStorage.getItem(TOKEN);
      const headers = { ...request.headers, ...(token && { Authorization: `Bearer ${token}` }) };
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

  /** Ask for a token, once for all requests that lack it. */
  async #newToken(wasWrong) {
    this.#asking ??= this.askToken(wasWrong).finally(() => (this.#asking = null));
    sessionStorage.setItem(TOKEN, await this.#asking);
  }
}
