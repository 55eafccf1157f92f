// One live event stream that always comes back. The browser's own reconnect does the common work; where it gives
// up, or the token is spent, or the line has gone silent, this opens a new stream at the last event id seen.

import { isSeen, parseEventId } from "./event_id.js";
import { StallWatch } from "./stall_watch.js";

const BACKOFF = { first: 1000, most: 30_000 }; // milliseconds
const STABLE = 10_000; // milliseconds after which a connection counts as good, and the backoff begins anew
const EVENT_TYPES = ["dashboard_update", "risk_alert", "training_progress", "backtest_progress"];

/** @typedef {"connecting" | "live" | "reconnecting" | "offline"} State */
/** @typedef {{id: string, channel: string, event: string, data: any}} Received */

/**
 * @typedef {object} Status
 * @property {State} state
 * @property {string} reason why it is not live
 * @property {number | null} retryAt when the next attempt is due, on the clock of performance.now()
 * @property {number} received events so far
 * @property {number} replayed how many of them were missed first and came after a reconnect
 * @property {number} reconnects
 * @property {string} lastId
 * @property {string} clientId
 */

/**
 * @typedef {object} Listener
 * @property {() => void} onBegin the first connection stands: from here on no event is missed
 * @property {(event: Received) => void} onEvent
 * @property {(channel: string, reason: string) => void} onReset what is shown of the channel has a gap
 * @property {(status: Status) => void} onStatus
 * @property {() => void} onExpired the login is of no more use
 */

/** A stream on some channels, from `start` to `stop`. */
export class Stream {
  #session;
  #channels;
  #listener;
  #source = null;
  #turn = 0; // grows with each attempt, so that what belongs to an older one is recognised
  #timer = 0;
  #stableTimer = 0;
  #attempt = 0;
  #retry = 3000; // milliseconds the browser waits before it reconnects, as the server said
  #position = null;
  #connectedAt = null; // by the server's clock
  #farewell = ""; // why the server is ending the stream
  #watch = new StallWatch(() => this.#schedule("no sign of life"));
  #status;

  /**
   * @param {import("./session.js").Session} session
   * @param {string[]} channels
   * @param {string} clientId
   * @param {Listener} listener
   */
  constructor(session, channels, clientId, listener) {
    this.#session = session;
    this.#channels = channels;
    this.#listener = listener;
    this.#status = {
      state: "connecting",
      reason: "",
      retryAt: null,
      received: 0,
      replayed: 0,
      reconnects: -1, // the first connection makes it 0
      lastId: "",
      clientId,
    };
  }

  /** @param {string} token the stream token to begin with */
  start(token) {
    window.addEventListener("online", this.retryNow);
    window.addEventListener("offline", this.#onOffline);
    this.#open(token);
  }

  /** Closes the stream for good. */
  stop() {
    window.removeEventListener("online", this.retryNow);
    window.removeEventListener("offline", this.#onOffline);
    this.#drop();
  }

  /** Reconnects without waiting any longer, unless the stream is live. */
  retryNow = () => {
    if (this.#status.state !== "live") this.#reopen();
  };

  #onOffline = () => {
    if (this.#status.state === "reconnecting") this.#tell({ state: "offline", reason: "this device is offline" });
  };

  #open(token) {
    this.#drop();
    const query = new URLSearchParams({ token, client_id: this.#status.clientId });
    if (this.#status.lastId) query.set("last_event_id", this.#status.lastId);
    const source = new EventSource(`/api/v1/sse/${this.#channels.join(",")}?${query}`);
    this.#source = source;
    this.#farewell = "";
    const on = (type, handle) => source.addEventListener(type, (event) => source === this.#source && handle(event));
    on("connected", (event) => this.#onConnected(event));
    on("ping", () => this.#watch.ping());
    on("reset", (event) => this.#onReset(JSON.parse(event.data)));
    on("closing", (event) => this.#onClosing(JSON.parse(event.data)));
    on("error", () => this.#onError(source));
    for (const type of EVENT_TYPES) on(type, (event) => this.#onEvent(event));
    this.#watch.start();
  }

  #drop() {
    this.#turn += 1;
    this.#source?.close();
    this.#source = null;
    this.#watch.stop();
    clearTimeout(this.#timer);
    clearTimeout(this.#stableTimer);
  }

  #onConnected(event) {
    const data = JSON.parse(event.data);
    this.#watch.start();
    this.#retry = data.retry ?? this.#retry;
    this.#connectedAt = Date.parse(data.timestamp);
    this.#position = parseEventId(event.lastEventId);
    this.#farewell = "";
    this.#stableTimer = setTimeout(() => (this.#attempt = 0), STABLE);
    const reconnects = this.#status.reconnects + 1;
    this.#tell({ state: "live", reason: "", retryAt: null, lastId: event.lastEventId, reconnects });
    if (reconnects === 0) this.#listener.onBegin();
  }

  #onEvent(event) {
    this.#watch.sign();
    const position = parseEventId(event.lastEventId);
    if (isSeen(position, this.#position)) return;
    this.#position = position;
    const data = JSON.parse(event.data);
    const missed = this.#status.reconnects > 0 && Date.parse(data.timestamp) < this.#connectedAt;
    this.#listener.onEvent({ id: event.lastEventId, channel: data.channel, event: event.type, data });
    this.#tell({
      lastId: event.lastEventId,
      received: this.#status.received + 1,
      replayed: this.#status.replayed + (missed ? 1 : 0),
    });
  }

  #onReset({ channel, reason }) {
    this.#watch.sign();
    this.#listener.onReset(channel, reason);
  }

  #onClosing({ reason, retry }) {
    this.#farewell = sentence(reason);
    if (retry !== null) {
      this.#retry = retry;
    } else if (reason === "kicked") {
      // Whoever did that meant it: to come back is for a person to decide.
      this.#drop();
      this.#tell({ state: "offline", reason: "an operator ended this connection", retryAt: null });
    } else {
      this.#schedule(this.#farewell);
    }
  }

  #onError(source) {
    if (source.readyState === EventSource.CLOSED) {
      this.#schedule(this.#farewell || "the stream was refused");
      return;
    }
    this.#watch.start();
    clearTimeout(this.#stableTimer);
    this.#tellWaiting(this.#farewell || "the connection was lost", this.#retry);
  }

  /** Plans a new stream after a random part of a growing delay. */
  #schedule(reason) {
    this.#drop();
    const delay = Math.random() * Math.min(BACKOFF.most, BACKOFF.first * 2 ** this.#attempt);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.#reopen(), delay);
    this.#tellWaiting(reason, delay);
  }

  async #reopen() {
    this.#drop();
    const turn = this.#turn;
    this.#tell({ state: "reconnecting", retryAt: null });
    try {
      const token = await this.#session.streamToken(this.#channels);
      if (turn === this.#turn) this.#open(token);
    } catch (error) {
      if (turn !== this.#turn) return;
      if (error.status === 401) this.#listener.onExpired();
      else this.#schedule(error.message);
    }
  }

  #tellWaiting(reason, delay) {
    const state = navigator.onLine ? "reconnecting" : "offline";
    const why = navigator.onLine ? reason : "this device is offline";
    this.#tell({ state, reason: why, retryAt: performance.now() + delay });
  }

  #tell(changes) {
    Object.assign(this.#status, changes);
    this.#listener.onStatus({ ...this.#status });
  }
}

function sentence(reason) {
  const known = {
    shutdown: "the server is restarting",
    token_expired: "the stream token expired",
    revoked: "the stream token was revoked",
    slow_consumer: "this page fell behind",
    unavailable: "the server cannot serve streams just now",
  };
  return known[reason] ?? String(reason).replaceAll("_", " ");
}
