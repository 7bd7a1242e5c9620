// HTTP requests to the server of this page, with a token if the server requires one.

const TOKEN = "anomaly-token";

/** A refused or unanswered request; `message` is for the user, `status` is 0 without a response. */
export class RequestFailed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Sends requests, and opens the token dialog if necessary.
 *
 * requestToken(wasWrong): returns a promise of the token.
 */
export class ApiClient {
  #newToken = null;

  constructor(requestToken) {
    this.requestToken = requestToken;
  }

  /** Fetch a path; a status that is neither successful nor expected throws `RequestFailed`. */
  async fetch(path, request, expected = []) {
    for (;;) {
      const token = sessionStorage.getItem(TOKEN);
      const headers = { ...request.headers, ...(token && { Authorization: `Bearer ${token}` }) };
      let response;
      try {
        response = await fetch(path, { ...request, headers, cache: "no-store" });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new RequestFailed("The service does not respond. It was stopped, or the file is too large.", 0);
      }
      if (response.status === 401) {
        if (token === sessionStorage.getItem(TOKEN)) await this.#renewToken(token !== null); // unless another request renewed it
        continue;
      }
      if (response.ok || expected.includes(response.status)) return response;
      throw new RequestFailed((await response.json()).error, response.status);
    }
  }

  /** Request a token, once for all waiting requests. */
  async #renewToken(wasWrong) {
    this.#newToken ??= this.requestToken(wasWrong).finally(() => (this.#newToken = null));
    sessionStorage.setItem(TOKEN, await this.#newToken);
  }
}
