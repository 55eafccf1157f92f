// A login at the server, from the password to the logout: it gets stream tokens, sends requests as the user, and
// replaces its access token in time. A page elsewhere than on the server's site has the refresh token in its memory;
// else it is a cookie that no script reads, which the tabs of a browser share and use one at a time.

const AUTH = "/api/v1/auth";
const TIMEOUT = 15_000; // ms for an answer
const SOON = 10_000; // ms after which a refresh is asked for again that the server could not do in time
const REPEATED = 4000; // ms after which a refresh is asked for again: for 30 s the server repeats what it answered
const TURN = 10_000; // ms after which a tab waits no longer for one that stands still

/** A request without success. `status` is 0 where the server was not reached; `code` is the server's. */
export class SessionError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string} [code]
   * @param {number} [retryAfter] seconds that the server asks to wait
   */
  constructor(status, message, code = "", retryAfter = 0) {
    super(message);
    this.name = "SessionError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** A login at a server. It fires "change" when another user, or none, is logged in. */
export class Session extends EventTarget {
  /** The user who is logged in, or empty. */
  username = "";
  /** The channels that the user may read, of those that the server's settings name. */
  channels = [];
  grants = noGrants();
  #server;
  #cookie;
  #proven; // it is known whether the browser keeps the cookie, or was said
  #onEnded;
  #name; // of the lock, the messages and the mark that tabs share
  #reached = false; // the server has answered this page
  #air = null; // the BroadcastChannel
  #login = null; // while a user is logged in: the tokens, whose they are, and when to replace them

  constructor(server, { onEnded, cookie } = {}) {
    super();
    const url = new URL(server || "/", globalThis.location?.href);
    this.#server = url.origin + url.pathname.replace(/\/+$/, "");
    this.#cookie = cookie ?? isOnSiteOf(url);
    this.#proven = cookie !== undefined;
    this.#onEnded = onEnded;
    this.#name = `sse_app session ${this.#server}`;
    // A page that the browser has cached hears nothing: its user may be logged out by now.
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && this.#look());
  }

  /** Logs in with a password. Another login that there was is ended, with its streams. */
  async login(username, password) {
    const before = await this.#inTurn(async () => {
      const answer = await this.#enter({ username, password });
      const before = this.#login;
      this.#begin(answer);
      return before;
    });
    this.#say("login");
    if (before) await this.#tellServer(before, "omit").catch(() => {}); // the cookie is the new login's
  }

  /** Continues the login of an earlier page load, where it is a cookie; tells whether there is one. */
  async resume() {
    const name = this.#mark();
    if (this.#login || !this.#cookie || name === null) return Boolean(this.#login);
    return this.#inTurn(async () => {
      if (this.#login) return true;
      const answer = await this.#renewal({}).catch((error) => {
        if (error.status === 401) return null;
        throw error;
      });
      if (this.#login) return true; // with a password, meanwhile
      const owner = answer && readClaims(answer.access_token).sub;
      if (!owner || (name && owner !== name)) {
        this.#mark(null);
        if (name) this.#tell(name, owner ? "user" : "expired", owner);
        return false;
      }
      this.#begin(answer);
      return true;
    });
  }

  /** Gets a stream token for the channels. */
  async streamToken(channels) {
    return (await this.fetch(`${AUTH}/stream-token`, { body: { channels: [...channels] } })).stream_token;
  }

  /** Sends a request as the user: a POST where there is a body, else a GET. */
  async fetch(path, options = {}) {
    const login = this.#login;
    for (let left = 2; ; left--) {
      const token = await this.#access(login);
      try {
        const answer = await this.#ask(path, { ...options, token });
        this.#require(login);
        return answer;
      } catch (error) {
        if (error.status !== 401 || !left) throw error;
      }
      // It was revoked, or this machine slept. Where the session is over, its refresh says so.
      if (login.access === token) login.staleAt = login.deadAt = 0;
    }
  }

  /** Ends the login, here and in the user's other tabs, with its streams. */
  async logout() {
    const login = this.#login;
    if (!login) return;
    const told = this.#tellServer(login, this.#credentials);
    this.#say("logout");
    this.#end(login, "logout");
    await told;
  }

  async #enter(account) {
    const enter = () =>
      this.#ask(`${AUTH}/login`, { body: { ...account, cookie: this.#cookie }, credentials: this.#credentials });
    const answer = await enter();
    if (!this.#cookie || this.#proven) return answer;
    // A browser does not tell whether it keeps the cookie: it may keep none, or none of a page within another site's.
    const proof = await this.#renewal({}).catch((error) => {
      if (error.status !== 401) throw error;
    });
    this.#proven = true;
    if (proof && isOfOne(proof, answer)) return proof;
    this.#cookie = false;
    await this.#tellServer({ access: answer.access_token }, "omit").catch(() => {});
    return enter();
  }

  #begin(answer) {
    const login = (this.#login = { renewing: null });
    this.#take(login, answer);
    this.#listen();
    this.dispatchEvent(new Event("change"));
  }

  #take(login, { access_token: access, refresh_token: refresh, expires_in: seconds, channels }) {
    clearTimeout(login.again);
    const { sub, sse } = readClaims(access);
    const now = performance.now();
    // Well before its end: stream tokens live no longer than the access token that they were asked for with.
    Object.assign(login, { access, refresh, username: sub, staleAt: now + seconds * 500, deadAt: now + seconds * 1000 });
    Object.assign(this, { username: sub, channels, grants: { ...noGrants(), ...sse } });
    if (this.#cookie) this.#mark(sub);
  }

  #end(login, reason, successor) {
    if (!login || login !== this.#login) return;
    this.#login = null;
    if (this.#cookie && this.#mark() === login.username) this.#mark(null); // it may be another user's by now
    Object.assign(this, { username: "", channels: [], grants: noGrants() });
    this.#air?.close();
    this.#air = null;
    this.dispatchEvent(new Event("change"));
    this.#tell(login.username, reason, successor);
  }

  #tell(username, reason, successor) {
    try {
      this.#onEnded?.({ reason, username, ...(successor && { successor }) });
    } catch (error) {
      setTimeout(() => {
        throw error; // the page's own
      });
    }
  }

  #require(login) {
    if (login && login === this.#login) return;
    if (this.#login) throw new SessionError(0, "another user has logged in meanwhile", "user_changed");
    throw new SessionError(401, "no user is logged in", "logged_out");
  }

  /** Returns an access token that is good for some time; while the server refreshes none, the one that there is. */
  async #access(login) {
    this.#require(login);
    if (performance.now() > login.staleAt) {
      login.renewing ??= this.#renew(login).finally(() => (login.renewing = null));
      await login.renewing.catch((error) => {
        const left = login.deadAt - performance.now();
        if (![429, 503].includes(error.status) || left <= 0) throw error;
        login.staleAt = login.deadAt - left * 0.75;
      });
      this.#require(login);
    }
    return login.access;
  }

  async #renew(login) {
    const renew = async () => {
      this.#require(login);
      const owner = this.#cookie ? this.#mark() : null;
      if (owner && owner !== login.username) return this.#end(login, "user", owner);
      const body = this.#cookie ? {} : { refresh_token: login.refresh };
      try {
        const answer = await this.#renewal(body);
        if (login !== this.#login) return;
        const { sub } = readClaims(answer.access_token); // a cookie does not say who has set it
        if (sub === login.username) this.#take(login, answer);
        else this.#end(login, "user", sub);
      } catch (error) {
        if (error.status === 401) this.#end(login, "expired");
        if (error.status === 503) this.#renewSoon(login); // it may have been done, and can be repeated for 30 s
        throw error;
      }
    };
    await (this.#cookie ? this.#inTurn(renew) : renew());
  }

  #renewSoon(login) {
    const again = () => {
      login.staleAt = 0;
      this.#access(login).catch(() => {});
    };
    clearTimeout(login.again); // else each request of the page would add one that is repeated for ever
    login.again = setTimeout(again, SOON * (1 + Math.random() / 4));
    login.again.unref?.(); // Node ends all the same
  }

  /** Spends a refresh token. It works once; only where the answer is lost the same is asked for once more, at once. */
  #renewal(body) {
    const ask = (timeout) => this.#ask(`${AUTH}/refresh`, { body, timeout, credentials: this.#credentials });
    return ask(REPEATED).catch((error) => {
      if (![0, 502, 504].includes(error.status)) throw error;
      return ask();
    });
  }

  get #credentials() {
    return this.#cookie ? "include" : "same-origin";
  }

  async #tellServer({ access, refresh }, credentials) {
    const ask = (token) =>
      this.#ask(`${AUTH}/logout`, { token, body: refresh ? { refresh_token: refresh } : {}, credentials, keepalive: true });
    const refused = (error) => {
      if (error.status !== 401) throw error;
    };
    // The access token may have expired while the other one has not. Where both have, the session is over anyway.
    await ask(access).catch((error) => refused(error) ?? ask().catch(refused));
  }

  /** Acts when no other tab does. */
  async #inTurn(act) {
    let begun = false;
    const begin = () => {
      begun = true;
      return act();
    };
    if (!this.#cookie) return act(); // nothing is shared
    try {
      return await navigator.locks.request(this.#name, { signal: AbortSignal.timeout(TURN) }, begin);
    } catch (error) {
      if (begun) throw error;
      return act(); // there are no locks here, or the tab that has it hangs
    }
  }

  #listen() {
    if (this.#air || !globalThis.BroadcastChannel) return;
    this.#air = new BroadcastChannel(this.#name);
    this.#air.unref?.(); // Node ends all the same
    this.#air.onmessage = ({ data: { kind, username, cookie } }) => {
      const login = this.#login;
      const isSame = username === login.username;
      if (kind === "logout" && isSame) {
        if (!cookie || !this.#cookie) this.#tellServer(login, this.#credentials).catch(() => {}); // a login of its own
        this.#end(login, "logout");
      } else if (kind === "login" && cookie && this.#cookie && !isSame) this.#end(login, "user", username);
    };
  }

  #say(kind) {
    this.#air?.postMessage({ kind, username: this.username, cookie: this.#cookie });
  }

  #look() {
    const login = this.#login;
    if (!login || !this.#cookie) return;
    const owner = this.#mark();
    if (owner && owner !== login.username) this.#end(login, "user", owner);
    else login.staleAt = 0;
  }

  /** Whose the cookie is, as far as this browser knows: null where there is none, undefined where nothing is kept. */
  #mark(name) {
    try {
      if (name) localStorage[this.#name] = name;
      else if (name === null) localStorage.removeItem(this.#name);
      return localStorage.getItem(this.#name);
    } catch {
      return undefined;
    }
  }

  async #ask(path, { method, query = {}, body, token, signal, timeout = TIMEOUT, credentials = "same-origin", keepalive }) {
    if (!path.startsWith("/")) throw new TypeError("a path begins with /");
    const url = new URL(this.#server + path);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== "") url.searchParams.set(name, value);
    }
    const headers = new Headers({ Accept: "application/json" });
    if (token) headers.set("Authorization", `Bearer ${token}`);
    const isText = body === undefined || typeof body === "string";
    if (!isText) headers.set("Content-Type", "application/json");
    const limit = AbortSignal.timeout(timeout);
    let response, text;
    try {
      response = await fetch(url, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        body: isText ? body : JSON.stringify(body),
        headers,
        credentials,
        cache: "no-store",
        keepalive,
        signal: signal ? AbortSignal.any([limit, signal]) : limit,
      });
      text = await response.text();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new SessionError(0, (!this.#reached && (await explained(this.#server))) || "the server cannot be reached");
    }
    this.#reached = true;
    const { ok, status } = response;
    if (status === 204) return null;
    const answer = parse(text);
    if (ok && answer === undefined && path.startsWith("/api/")) throw new SessionError(0, "another server has answered");
    if (ok) return answer ?? text;
    const { message = `the server answered ${status}`, code } = answer?.error ?? {};
    throw new SessionError(status, message, code, Number(response.headers.get("Retry-After")) || 0);
  }
}

/** Tells what probably keeps the page from a server that it has never reached, if it can be told. */
async function explained(server) {
  try {
    return await (await import("./sse-explain.js")).explain(`${server}/api/v1/sse/status`);
  } catch {
    return "";
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function noGrants() {
  return { subscribe: [], publish: [], admin: false };
}

/** Reads what a token says, which came from the server itself. */
function readClaims(token) {
  const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))));
}

function isOfOne(one, other) {
  const [{ sid }, { sid: otherSid }] = [one, other].map((answer) => readClaims(answer.access_token));
  return sid === otherSid;
}

/** Tells whether a browser sends the server's cookie from this page: where both are of one site, and safe. */
function isOnSiteOf({ protocol, hostname }) {
  const page = globalThis.location;
  if (!globalThis.isSecureContext || navigator.cookieEnabled === false || page?.protocol !== protocol) return false;
  return page.hostname === hostname || isOneSite(page.hostname.split("."), hostname.split("."));
}

/** A browser takes a cookie for what two hosts end with, unless anybody can have a name below that, as below "co.uk". */
function isOneSite(names, others) {
  let count = 0;
  while (count < names.length && names.at(-1 - count) === others.at(-1 - count)) count++;
  if (count < 2 || !globalThis.document) return false;
  const cookie = `sse_app_site=1; Domain=${names.slice(-count).join(".")}; Path=/; Secure; SameSite=Strict`;
  document.cookie = cookie;
  const taken = document.cookie.includes("sse_app_site=1");
  document.cookie = `${cookie}; Max-Age=0`;
  return taken;
}
