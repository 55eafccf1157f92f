// The login and the requests it allows. Tokens live in this object's memory and nowhere else.

const AUTH = "/api/v1/auth";
const TIMEOUT = 15_000; // milliseconds

/** A request that was not answered with success. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** One login. */
export class Session {
  #accessToken = "";

  /** The name that is logged in, or empty. */
  username = "";

  /**
   * Logs in.
   * @param {string} username
   * @param {string} password
   * @returns {Promise<{streamToken: string, channels: string[]}>}
   */
  async logIn(username, password) {
    const answer = await request(`${AUTH}/login`, { body: { username, password, cookie: false } });
    this.#accessToken = answer.access_token;
    this.username = username;
    return { streamToken: answer.stream_token, channels: answer.channels };
  }

  /** Forgets the tokens. */
  logOut() {
    this.#accessToken = "";
    this.username = "";
  }

  /**
   * Gets a new stream token for the channels.
   * @param {string[]} channels
   * @returns {Promise<string>}
   */
  async streamToken(channels) {
    const answer = await request(`${AUTH}/stream-token`, { body: { channels }, token: this.#accessToken });
    return answer.stream_token;
  }

  /**
   * Gets the last events of a channel, oldest first.
   * @param {string} channel
   * @param {number} limit
   * @returns {Promise<{id: string, channel: string, event: string, data: object}[]>}
   */
  async history(channel, limit) {
    const path = `/api/v1/sse/${encodeURIComponent(channel)}/history?limit=${limit}`;
    return (await request(path, { token: this.#accessToken })).events;
  }
}

/**
 * @param {string} path
 * @param {{body?: object, token?: string}} options with a body it is a POST, else a GET
 * @returns {Promise<any>}
 */
async function request(path, { body, token }) {
  const headers = new Headers({ Accept: "application/json" });
  if (token) headers.set("Authorization", `Bearer ${token}`);
  if (body) headers.set("Content-Type", "application/json");
  const response = await answerTo(path, {
    method: body ? "POST" : "GET",
    body: body && JSON.stringify(body),
    headers,
    credentials: "omit",
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT),
  });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new ApiError(response.status, answer?.error?.message ?? `the server answered ${response.status}`);
}

async function answerTo(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new ApiError(0, "the server cannot be reached");
  }
}
