// One event stream that always comes back: the browser's own EventSource does the reading, this does what it cannot.

const PATIENCE = 2.25; // ping intervals of silence, so that with the grace below a stall is told within 2.5
const GRACE = 100; // ms; what came while this page was busy waits in the event queue, and gets this long to be seen
const STABLE = 10_000; // ms after which a connection counts as good, and the backoff begins anew
const SHORT = 1000; // ms; a connection that ended sooner is not replaced at once, and no timer of a token is shorter
const LONGEST_WAIT = 3_600_000; // ms; a server that asks for more is asked again after this
const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once
const FINAL = [204, 400, 401, 403, 404]; // what asking again would not change

const ENDED = "ended"; // all that the stream carries has come to its end
const KICKED = "kicked"; // the code and the reason with which the server keeps a session from streams for a while

const now = () => performance.now();

/** Reads the data of an event; what is no JSON is taken as it is, and what is no object has no fields. */
export function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return text;
  }
}

/** Tells whether a channel is one of these, or one that a pattern among them covers. */
export function isCovered(channel, channels) {
  const names = `${channel}`.split(".");
  const covers = (pattern) => {
    const parts = pattern.split(".");
    const all = parts.at(-1) === "**"; // any number of segments, also none
    if (all) parts.pop();
    return (all ? parts.length <= names.length : parts.length === names.length)
      && parts.every((part, place) => part === "*" || part === names[place]);
  };
  return channels.has(channel) || [...channels].some(covers);
}

/** Tells for which reason a stream is refused: an end and a kick by their names, all else by the status. */
async function refusalOf(answer) {
  if (answer.status === 204) return ENDED;
  const body = answer.status === 403 ? await answer.json().catch(() => null) : null;
  return body?.error?.code === KICKED ? KICKED : `status ${answer.status}`;
}

/** One stream on some channels, kept going until it is stopped or finally refused. */
export class Connection {
  /** The id to resume after; what the server said in `connected`, while the stream is open; it waits to try again. */
  position;
  info = null;
  waiting = false;
  #options;
  #tell;
  #generation = new AbortController(); // aborted when its attempt is superseded: what belongs to it never fires
  #source = null;
  #timers = new Set();
  #watchTimer = 0;
  #attempt = 0;
  #delay; // ms from which the backoff grows: the server's `retry`, once it is known
  #interval; // ms between pings, learned from them
  #gaps = [];
  #heard = 0;
  #lastPing = 0;
  #openedAt = 0;
  #expiresAt = 0;
  #refused = false; // the next 401 is final
  #only; // the one channel that this connection carries, or "" where there may be others
  #lost; // channels that were reset on this connection

  /**
   * @param {object} options those of the client, complete
   * @param {(kind: string, detail: object) => void} tell takes "open", "event", "reset", "ping", "reconnect" and "stop"
   */
  constructor(options, tell) {
    this.#options = options;
    this.#tell = tell;
    this.#delay = options.reconnectDelay;
    this.#interval = options.pingInterval;
  }

  start(token) {
    addEventListener("online", this.#onOnline);
    addEventListener("offline", this.#onOffline);
    this.restart(token);
  }

  stop() {
    removeEventListener("online", this.#onOnline);
    removeEventListener("offline", this.#onOffline);
    this.#drop();
  }

  /** Connects now, with the channels and the position as they are. */
  restart(token) {
    this.#connect(this.#drop(), token);
  }

  /** Hears events of one more type. */
  listen(type) {
    if (this.#source) this.#on(type, this.#onEvent);
  }

  #onOnline = () => this.info || this.restart();
  // Waits for "online"; but a server on this very machine can be reached all the same, so it also tries.
  #onOffline = () => this.#retry("offline", this.#options.maxReconnectDelay);

  /** Ends the attempt or connection that there is, and returns the signal of the next. */
  #drop() {
    this.#generation.abort();
    this.#generation = new AbortController();
    this.#source?.close();
    this.#source = this.info = null;
    this.waiting = false;
    this.#timers.forEach((timer) => clearTimeout(timer));
    this.#timers.clear();
    clearTimeout(this.#watchTimer);
    return this.#generation.signal;
  }

  #after(ms, act) {
    const timer = setTimeout(() => this.#timers.delete(timer) && act(), Math.min(ms, LONGEST));
    this.#timers.add(timer);
  }

  async #connect(signal, token) {
    const { url, search, types, clientId, withCredentials, connectTimeout } = this.#options;
    this.#watch(connectTimeout);
    try {
      token ??= await this.#token();
    } catch (error) {
      if (signal.aborted) return;
      if ([401, 403].includes(error?.status)) this.#fail(error.code === KICKED ? KICKED : "token", error.status);
      else this.#retry("token");
      return;
    }
    if (signal.aborted) return;
    const at = new URL(`${url}/${[...this.#options.channels]}${search}`);
    for (const [name, value] of [["token", token], ["client_id", clientId], ["last_event_id", this.position]]) {
      if (value) at.searchParams.set(name, value);
    }
    const [first = "", ...others] = this.#options.channels;
    this.#only = others.length || first.includes("*") ? "" : first;
    const source = (this.#source = new EventSource(at, { withCredentials }));
    this.#lost = new Set();
    this.#on("connected", this.#onConnected);
    this.#on("ping", this.#onPing);
    this.#on("reset", this.#onReset);
    this.#on("closing", this.#onClosing);
    // The browser's own reconnect would repeat the old token and position, and knows no backoff.
    this.#on("error", () => (source.readyState === EventSource.CLOSED ? this.#ask(at) : this.#retry("lost")));
    for (const type of types) this.#on(type, this.#onEvent);
  }

  #token() {
    const { token, channels } = this.#options;
    return typeof token === "function" ? token([...channels]) : token;
  }

  get #renewable() {
    return typeof this.#options.token === "function";
  }

  #on(type, act) {
    const { signal } = this.#generation;
    this.#source.addEventListener(type, (event) => {
      if (signal.aborted) return;
      this.#heard = now();
      act(event);
    });
  }

  #onConnected = ({ data, lastEventId }) => {
    this.info = parse(data);
    this.position = lastEventId;
    this.#refused = false;
    this.#openedAt = this.#heard;
    this.#lastPing = 0;
    this.#gaps = [];
    if (this.info.retry > 0) this.#delay = this.info.retry;
    this.#watch(PATIENCE * this.#interval);
    this.#after(STABLE, () => (this.#attempt = 0));
    this.#expire(this.info.expires_in);
    this.#tell("open", { id: lastEventId, info: this.info });
  };

  #onEvent = ({ type, data, lastEventId }) => {
    // One that only repeats the position has no id of its own: it is in no log, so it is never replayed and never seen.
    const id = lastEventId === this.position ? "" : lastEventId;
    this.position = lastEventId;
    this.#tell("event", { id, type, data, channel: this.#only || this.#channelIn(data) });
  };

  /** Data that is no object says of no channel, and no text of one that this connection does not have. */
  #channelIn(data) {
    const channel = parse(data).channel;
    return typeof channel === "string" && isCovered(channel, this.#options.channels) ? channel : "";
  }

  /** Learns the pace of the pings. A paused page gets several at once, so the longest of three gaps counts. */
  #onPing = ({ lastEventId }) => {
    this.position = lastEventId;
    if (this.#lastPing) {
      this.#gaps = [...this.#gaps, this.#heard - this.#lastPing].slice(-3);
      this.#interval = Math.max(SHORT, ...this.#gaps);
    }
    this.#lastPing = this.#heard;
    this.#watch(PATIENCE * this.#interval);
    this.#tell("ping", { id: lastEventId });
  };

  #onReset = ({ data }) => {
    const { channel, reason } = parse(data);
    this.#lost.add(channel);
    this.#tell("reset", { channel, reason, all: this.info?.channels?.every((one) => this.#lost.has(one)) });
  };

  #onClosing = ({ data }) => {
    const { reason, retry } = parse(data);
    if (retry != null) return this.#retry(reason, retry);
    if (reason === ENDED) return this.#fail(ENDED, 204);
    if (!this.#renewable) return this.#fail(reason, 401);
    if (reason === KICKED) return this.#fail(KICKED, 403); // no fresh token would be taken
    // This token is of no more use. A user whose tokens were revoked gets one chance to show that a fresh one is granted.
    this.#refused = reason === "revoked";
    if (now() - this.#openedAt < SHORT) return this.#retry(reason);
    this.restart();
    this.#tell("reconnect", { delay: 0, reason });
  };

  /** Looks after the silence: reconnects when nothing has been heard for so long. */
  #watch(patience) {
    clearTimeout(this.#watchTimer);
    this.#heard = now();
    const look = (sure) => {
      const left = this.#heard + patience - now();
      if (left > 0) this.#watchTimer = setTimeout(look, left);
      else if (!sure) this.#watchTimer = setTimeout(look, GRACE, true);
      else {
        this.#interval = this.#options.pingInterval; // what was learned may be true no more
        this.#retry(this.info ? "stalled" : "timeout");
      }
    };
    look();
  }

  /** Plans to renew the token well before it expires, at a random moment so that clients spread. */
  #expire(seconds) {
    if (!this.#renewable || !Number.isFinite(seconds)) return;
    this.#expiresAt = now() + seconds * 1000;
    this.#planRenewal();
  }

  #planRenewal() {
    const left = this.#expiresAt - now();
    if (left > 0) this.#after(Math.max(SHORT, left * (0.5 + 0.25 * Math.random())), () => this.#renew());
  }

  async #renew() {
    const { signal } = this.#generation;
    const { url } = this.#options;
    let token, answer, body;
    try {
      token = await this.#token();
      if (signal.aborted) return;
      answer = await this.#fetch(`${url}/connections/${this.info.client_id}/renew`, {
        method: "POST",
        headers: { Authorization: `Bearer ${token}` },
        signal,
      });
      body = await answer.json();
    } catch {
      // Not reached: there is time to try again, and where there is none the server says `closing`.
    }
    if (signal.aborted) return;
    if (answer?.ok) this.#expire(body?.expires_in);
    else if ([403, 404].includes(answer?.status)) {
      this.restart(token);
      this.#tell("reconnect", { delay: 0, reason: "renewal" });
    } else this.#planRenewal();
  }

  #fetch(url, options) {
    const credentials = this.#options.withCredentials ? "include" : "same-origin";
    return fetch(url, { cache: "no-store", credentials, ...options });
  }

  /** Learns why the EventSource gave up: it does not tell the status, so one fetch asks, and goes at the headers. */
  async #ask(at) {
    const signal = this.#drop();
    this.#watch(this.#options.connectTimeout);
    const answer = await this.#fetch(at, { signal }).catch(() => null);
    if (signal.aborted) return;
    const status = answer?.status;
    const after = answer?.headers.get("Retry-After");
    if (status === 401 && this.#renewable && !this.#refused) {
      this.#refused = true;
      this.restart();
    } else if (FINAL.includes(status)) {
      const reason = await refusalOf(answer);
      if (!signal.aborted) this.#fail(reason, status);
    } else {
      const sent = Date.parse(answer?.headers.get("Date")) || Date.now(); // this machine's clock may be another
      const wait = Math.min(after * 1000 || Date.parse(after) - sent || 0, LONGEST_WAIT);
      this.#retry(status ? `status ${status}` : "unreachable", wait * (1 + Math.random() / 4));
    }
  }

  /** Plans the next attempt: exponential backoff with full jitter, and not before what the server asked for. */
  #retry(reason, atLeast = 0) {
    this.#drop();
    const { maxRetries, maxReconnectDelay } = this.#options;
    if (this.#attempt >= maxRetries) return this.#fail(reason);
    const most = Math.min(maxReconnectDelay, this.#delay * 2 ** this.#attempt++);
    const delay = Math.max(atLeast, Math.random() * most);
    this.#after(delay, () => this.restart());
    this.waiting = true;
    this.#tell("reconnect", { delay, reason });
  }

  #fail(reason, status = 0) {
    this.stop();
    this.#tell("stop", { reason, status });
  }
}
