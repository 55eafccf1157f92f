// The login and the requests it allows. The access token lives in this object's memory and nowhere else; the refresh
// token is a cookie that no script can read. What is kept in localStorage is only that there is a session, and whose:
// a page that is loaded need not ask in vain, and the tabs of a browser notice when it ends in one of them.

const AUTH = "/api/v1/auth";
const TIMEOUT = 15_000; // ms
const REPEATED = 4_000; // ms after which a refresh is asked for again: for 10 s the server repeats what it answered
const EARLY = 30_000; // ms before its end that an access token is replaced, or half of its life: stream tokens end with it
const MARK = "sse_app session";

/** A request that was not answered with success. `status` is 0 where no answer came at all; `code` is the server's. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string} [code]
   */
  constructor(status, message, code = "") {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

/** The browser's cookie is another user's than the one whom the page was last used by. */
export class AnotherUser extends ApiError {
  constructor(before, now) {
    super(401, `This browser is now logged in as ${now}, no longer as ${before}. Please log in again.`);
    this.name = "AnotherUser";
  }
}

/** One login: begun with a password, continued by the cookie. */
export class Session {
  #token = "";
  #staleAt = 0;
  #refreshing = null;
  #onLost = () => {};

  /** Why the last login is over, where that is another reason than its age. */
  problem = "";
  /** The name that is logged in, or empty. */
  username = "";
  /** The channels that may be read, of those configured by name. */
  channels = [];
  /** @type {{subscribe: string[], publish: string[], admin: boolean}} */
  grants = { subscribe: [], publish: [], admin: false };

  /** @param {() => void} onLost the session was ended or replaced in another tab */
  constructor(onLost) {
    this.#onLost = onLost;
    addEventListener("storage", ({ key, newValue }) => {
      if (key !== MARK || !this.username || newValue === this.username) return;
      this.#leave();
      this.#onLost();
    });
  }

  /** Begins a session with a password. */
  async logIn(username, password) {
    this.problem = "";
    await this.#enter(await ask(`${AUTH}/login`, { body: { username, password } }), username);
  }

  /**
   * Continues the session of an earlier page load, if it is still the same user's: a cookie does not say who set it.
   * @returns {Promise<boolean>} whether there is one
   */
  async resume() {
    if (!stored()) return false;
    this.problem = "";
    await this.#refresh();
    return true;
  }

  /** Ends the session: its tokens and its streams end with it, here and in other tabs. */
  async logOut() {
    const token = this.#token;
    this.forget();
    await ask(`${AUTH}/logout`, { token, body: {}, keepalive: true }); // also where the page is left at once
  }

  /** Forgets the session without ending it. */
  forget() {
    if (!this.username || stored() === this.username) store(null); // it may be another user's by now
    this.#leave();
  }

  /**
   * Gets a stream token for the channels.
   * @param {string[]} channels
   * @returns {Promise<string>}
   */
  async streamToken(channels) {
    return (await this.request(`${AUTH}/stream-token`, { body: { channels } })).stream_token;
  }

  /**
   * Gets the last events of a channel, oldest first, or the first ones after a position.
   * @returns {Promise<{id: string, channel: string, event: string, data: object}[]>}
   */
  async history(channel, limit, after) {
    return (await this.request(`/api/v1/sse/${encodeURIComponent(channel)}/history`, { query: { limit, after } }))
      .events;
  }

  /**
   * Sends a request as the user who is logged in.
   * @param {string} path
   * @param {{query?: object, body?: object, signal?: AbortSignal}} [options] with a body it is a POST, else a GET
   */
  async request(path, options = {}) {
    if (performance.now() > this.#staleAt) await this.#refresh();
    try {
      return await ask(path, { ...options, token: this.#token });
    } catch (error) {
      if (error.status !== 401) throw error;
    }
    await this.#refresh(); // the token was revoked, or this machine slept; a session that has ended says so
    return ask(path, { ...options, token: this.#token });
  }

  /**
   * Spends the cookie for the next one. It works once, so neither two calls nor two tabs spend it together; only where
   * the answer is lost it is asked for once more, at once.
   */
  #refresh() {
    const renew = (options) => ask(`${AUTH}/refresh`, { body: {}, ...options });
    const refresh = async () =>
      this.#enter(
        await renew({ timeout: REPEATED }).catch((error) => {
          if (error.status >= 400) throw error;
          return renew();
        }),
      );
    this.#refreshing ??= (navigator.locks ? navigator.locks.request(MARK, refresh) : refresh())
      .catch((error) => {
        if (error instanceof AnotherUser) this.problem = error.message;
        if (error.status === 401) this.forget();
        throw error;
      })
      .finally(() => (this.#refreshing = null));
    return this.#refreshing;
  }

  #leave() {
    this.#token = this.username = "";
    this.#staleAt = 0;
  }

  async #enter({ access_token: token, expires_in: seconds }, expected = this.username || stored()) {
    const me = await ask(`${AUTH}/me`, { token });
    if (expected && me.subject !== expected) throw new AnotherUser(expected, me.subject);
    this.#token = token;
    this.#staleAt = performance.now() + seconds * 1000 - Math.min(EARLY, seconds * 500);
    this.username = me.subject;
    this.channels = me.channels;
    this.grants = me.grants;
    store(me.subject);
  }
}

async function ask(path, { query = {}, body, token, signal, keepalive = false, timeout = TIMEOUT }) {
  const headers = new Headers({ Accept: "application/json" });
  if (token) headers.set("Authorization", `Bearer ${token}`);
  if (body) headers.set("Content-Type", "application/json");
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const response = await answerTo(given.length ? `${path}?${new URLSearchParams(given)}` : path, {
    method: body ? "POST" : "GET",
    body: body && JSON.stringify(body),
    headers,
    credentials: "same-origin",
    cache: "no-store",
    keepalive,
    signal: AbortSignal.any([AbortSignal.timeout(timeout), ...(signal ? [signal] : [])]),
  });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new ApiError(response.status, answer?.error?.message ?? `the server answered ${response.status}`, answer?.error?.code);
}

async function answerTo(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.signal.aborted && error.name === "AbortError") throw error;
    throw new ApiError(0, "the server cannot be reached");
  }
}

function stored() {
  try {
    return localStorage[MARK];
  } catch {
    return undefined; // no storage: the login lives as long as the page
  }
}

function store(name) {
  try {
    if (name === null) localStorage.removeItem(MARK);
    else localStorage[MARK] = name;
  } catch {
    // As above.
  }
}
