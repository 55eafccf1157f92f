// One event stream that always comes back. It is read with fetch, which unlike an EventSource tells the status, hears
// events of all types, and runs in Node.js, Deno, Bun and workers too.

import { makeParser } from "./sse-parser.js";

const PATIENCE = 2.25; // ping intervals of silence, so that with the grace below a stall is told within 2.5
const GRACE = 100; // ms; what came while this page was busy waits to be read, and gets this long
const STABLE = 10_000; // ms after which a connection counts as good, and the backoff begins anew
const SHORT = 1000; // ms; a connection that ended sooner is not replaced at once, and no timer of a token is shorter
const LONGEST_WAIT = 3_600_000; // ms; a server that asks for more is asked again after this
const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once
const FINAL = [204, 400, 401, 403, 404]; // what asking again would not change

const ENDED = "ended"; // all that the stream carries has come to its end
const KICKED = "kicked"; // the code and the reason with which the server keeps a session from streams for a while

const now = () => performance.now();

/** Reads the data of an event; what is no JSON is taken as it is. */
export function parse(text) {
  try {
    return JSON.parse(text);
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

/** The channels as they stand in the path of a URL. */
export const pathOf = (channels) => [...channels].map(encodeURIComponent).join();

/** A wait that was asked for, in milliseconds; longer by chance, so that not all come back at once. */
const spread = (ms) => Math.min(ms || 0, LONGEST_WAIT) * (1 + Math.random() / 4);

/** One stream on some channels, kept going until it is stopped or finally refused. */
export class Connection {
  /** The id to resume after; what the server said in `connected`, while the stream is open; it waits to try again. */
  position;
  info = null;
  waiting = false;
  #options;
  #tell;
  #generation = new AbortController(); // aborted when its attempt is superseded: what belongs to it never fires
  #timer = 0;
  #attempt = 0;
  #notBefore = 0; // the server has asked to be left alone until then
  #delay; // ms from which the backoff grows: the server's `retry`, once it is known
  #interval; // ms between pings, learned from them
  #gaps = [];
  #heard = 0;
  #heardAt = 0; // by the wall clock, which goes on while the machine sleeps
  #lastPing = 0;
  #openedAt = 0;
  #refused = false; // the next 401 is final
  #only; // the one channel that this connection carries, or "" where there may be others
  #lost; // channels that were reset on this connection

  /**
   * @param {object} options those of the client, complete
   * @param {(kind: string, detail?: object) => void} tell takes "connecting", "open", "event", "reset", "ping",
   *   "reconnect" and "stop"
   */
  constructor(options, tell) {
    this.#options = options;
    this.#tell = tell;
    this.#delay = options.reconnectDelay;
    this.#interval = options.pingInterval;
  }

  /** Connects, but not before the server has allowed it. */
  start(token) {
    const wait = this.#notBefore - now();
    if (wait > 0) this.#plan(wait);
    else this.restart(token);
  }

  stop() {
    this.#drop();
  }

  /** Connects now, with the channels and the position as they are. */
  restart(token) {
    this.#connect(this.#drop(), token);
  }

  /** Heeds what the browser tells of the network and the page, by the names of its events, or that another tab woke. */
  heed(type) {
    // The page or the machine may have slept, and the connection died meanwhile: no need to wait for it any longer.
    const silence = Math.max(now() - this.#heard, Date.now() - this.#heardAt);
    // Waits for "online"; but a server on this very machine can be reached all the same, so it also tries.
    if (type === "offline") this.#retry(type, this.#options.maxReconnectDelay, 0);
    else if (this.info && silence > this.#interval + GRACE) this.replace("stalled");
    else if (this.waiting && type === "online") this.start();
  }

  /** Ends the attempt or connection that there is, and returns the signal of the next. */
  #drop() {
    this.#generation.abort();
    this.#generation = new AbortController();
    if (this.info && now() - this.#openedAt > STABLE) this.#attempt = 0;
    this.info = null;
    this.waiting = false;
    clearTimeout(this.#timer);
    return this.#generation.signal;
  }

  #wait(ms, act, given) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, Math.min(ms, LONGEST), given);
  }

  #plan(delay) {
    this.#drop();
    this.#wait(delay, () => this.restart());
    this.waiting = true;
  }

  async #connect(signal, token) {
    const { search, channels, clientId, connectTimeout } = this.#options;
    this.#watch(connectTimeout);
    try {
      token ??= await this.fetchToken();
    } catch (error) {
      if (!signal.aborted && !this.isOver(error)) this.#retry("token", spread(error?.retryAfter * 1000));
      return;
    }
    if (signal.aborted) return;
    this.#tell("connecting");
    const query = new URLSearchParams(search);
    if (clientId) query.set("client_id", clientId);
    if (token) query.set("token", token);
    if (this.position) query.set("last_event_id", this.position);
    const [first = "", ...others] = channels;
    this.#only = others.length || first.includes("*") ? "" : first;
    this.#lost = new Set();
    let reason = "unreachable";
    try {
      const answer = await this.fetch(`/${pathOf(channels)}?${query}`, { signal, headers: { Accept: "text/event-stream" } });
      if (answer.status !== 200 || !/^text\/event-stream *(;|$)/i.test(answer.headers.get("Content-Type"))) {
        return await this.#refuse(answer, signal);
      }
      reason = "lost";
      await this.#read(answer, signal);
    } catch {
      // Not reached, or lost.
    }
    if (!signal.aborted) this.#retry(reason);
  }

  /** Reads a stream to its end, or until it is superseded. */
  async #read({ url, body }, signal) {
    const origin = new URL(url || this.#options.url).origin; // a response that a service worker made has no URL
    const read = makeParser(this.position);
    const decoder = new TextDecoder();
    const reader = body.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (signal.aborted || done) return;
      this.#hear();
      for (const event of read(decoder.decode(value, { stream: true }))) {
        this.position = event.id;
        this.#delay = event.retry || this.#delay;
        this.#take(event, origin);
        if (signal.aborted) return;
      }
    }
  }

  #take({ type, data, own }, origin) {
    if (data === undefined) return this.#tell("ping", { id: this.position });
    if (type === "ping") return this.#onPing();
    const value = parse(data) ?? {};
    if (type === "connected") return this.#onConnected(value);
    if (type === "reset") return this.#onReset(value);
    if (type === "closing") return this.#onClosing(value);
    if (!this.info) this.#onConnected({}); // another server than ours
    // An event without an id of its own is in no log, so it is never replayed and never seen.
    this.#tell("event", { id: own, type, data, origin, channel: this.#only || this.#channelIn(value) });
  }

  fetchToken() {
    const { token, channels } = this.#options;
    return this.#renewable ? token([...channels]) : token;
  }

  /** Tells whether the token function says that the login is over, and ends with it. */
  isOver(error) {
    const isOver = [401, 403].includes(error?.status);
    if (isOver) this.#fail(error.code === KICKED ? KICKED : "token", error.status);
    return isOver;
  }

  get #renewable() {
    return typeof this.#options.token === "function";
  }

  #onConnected(info) {
    this.info = info;
    this.#refused = false;
    this.#openedAt = this.#heard;
    this.#lastPing = 0;
    this.#gaps = [];
    if (info.retry > 0) this.#delay = info.retry;
    this.#watch(PATIENCE * this.#interval);
    if (this.#renewable && info.expires_in > 0) {
      const end = now() + info.expires_in * 1000;
      const { signal } = this.#generation;
      // Where that cannot be loaded, the server says `closing`, and a fresh connection takes the place of this one.
      import("./sse-renewal.js").then(({ keepRenewed }) => keepRenewed(this, end, signal), () => {});
    }
    this.#tell("open", { id: this.position, info });
  }

  /** Data that is no object says of no channel, and no text of one that this connection does not have. */
  #channelIn({ channel }) {
    return typeof channel === "string" && isCovered(channel, this.#options.channels) ? channel : "";
  }

  /** Learns the pace of the pings. A paused page gets several at once, so the longest of three gaps counts. */
  #onPing() {
    if (this.#lastPing) {
      this.#gaps = [...this.#gaps, this.#heard - this.#lastPing].slice(-3);
      this.#interval = Math.max(SHORT, ...this.#gaps);
    }
    this.#lastPing = this.#heard;
    this.#watch(PATIENCE * this.#interval);
    this.#tell("ping", { id: this.position });
  }

  #onReset({ channel, reason }) {
    this.#lost.add(channel);
    this.#tell("reset", { channel, reason, all: this.info?.channels?.every?.((one) => this.#lost.has(one)) });
  }

  #onClosing({ reason, retry }) {
    if (retry != null) return this.#retry(reason, Number(retry) || 0);
    if (reason === ENDED) return this.#fail(ENDED, 204);
    if (!this.#renewable) return this.#fail(reason, 401);
    if (reason === KICKED) return this.#fail(KICKED, 403); // no fresh token would be taken
    // This token is of no more use. A user whose tokens were revoked gets one chance to show that a fresh one is granted.
    this.#refused = reason === "revoked";
    if (now() - this.#openedAt < SHORT) return this.#retry(reason);
    this.replace(reason);
  }

  /** Connects anew at once. */
  replace(reason, token) {
    this.restart(token);
    this.#tell("reconnect", { delay: 0, reason, attempt: this.#attempt + 1 });
  }

  #hear() {
    this.#heard = now();
    this.#heardAt = Date.now();
  }

  /** Looks after the silence: reconnects when nothing has been heard for so long. */
  #watch(patience) {
    this.#hear();
    const look = (sure) => {
      const left = this.#heard + patience - now();
      if (left > 0) this.#wait(left, look);
      else if (!sure) this.#wait(GRACE, look, true);
      else {
        // What was learned may be true no more. Where this stream has shown no pace, its pings may just come more slowly
        // than was believed, and unless the next one waits longer, none would live to show it.
        this.#interval = Math.max(
          this.#options.pingInterval,
          this.info && !this.#gaps.length ? Math.min(patience, LONGEST_WAIT) : 0,
        );
        this.#retry(this.info ? "stalled" : "timeout");
      }
    };
    look();
  }

  fetch(path, options) {
    const { url, withCredentials } = this.#options;
    return fetch(url + path, { cache: "no-store", credentials: withCredentials ? "include" : "same-origin", ...options });
  }

  /** Does what an answer that is no stream asks for. */
  async #refuse(answer, signal) {
    const { status, headers } = answer;
    if (status === 401 && this.#renewable && !this.#refused) {
      this.#refused = true;
      this.restart();
    } else if (FINAL.includes(status)) {
      const body = status === 403 ? await answer.json().catch(() => null) : null;
      const reason = body?.error?.code === KICKED ? KICKED : `status ${status}`;
      if (!signal.aborted) this.#fail(status === 204 ? ENDED : reason, status);
    } else {
      const after = headers.get("Retry-After");
      const sent = Date.parse(headers.get("Date")) || Date.now(); // this machine's clock may be another
      this.#retry(`status ${status}`, spread(after * 1000 || Date.parse(after) - sent));
    }
  }

  /**
   * Plans the next attempt: exponential backoff with full jitter, after `atLeast` milliseconds, and not before the server
   * has allowed it, which `asked` for so many.
   */
  #retry(reason, atLeast = 0, asked = atLeast) {
    this.#drop();
    const { maxRetries, maxReconnectDelay } = this.#options;
    if (this.#attempt >= maxRetries) return this.#fail(reason);
    const most = Math.min(maxReconnectDelay, this.#delay * 2 ** this.#attempt++);
    this.#notBefore = Math.max(this.#notBefore, now() + asked);
    const delay = Math.max(atLeast, this.#notBefore - now(), Math.random() * most);
    this.#plan(delay);
    this.#tell("reconnect", { delay, reason, attempt: this.#attempt });
  }

  #fail(reason, status = 0) {
    this.stop();
    this.#tell("stop", { reason, status });
  }
}
