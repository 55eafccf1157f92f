// The page's stream, as people want to see it: whether it is live, when it tries again, how long events take, and what
// was missed. The stream itself is the client's: see sse-client.js.

import { SSEClient } from "./sse-client.js";

const LATENCIES = 15; // the median of so many is shown
const SKEWED = 1000; // ms that two clocks may differ before it is taken into account

const REASONS = {
  shutdown: "the server is restarting",
  unreachable: "the server cannot be reached",
  token: "the server cannot be reached",
  lost: "the connection was lost",
  stalled: "no sign of life",
  timeout: "no answer",
  offline: "this device is offline",
  slow_consumer: "this page fell behind",
  unavailable: "the server cannot serve streams just now",
  token_expired: "the stream token expired",
  renewal: "with a fresh token",
};

/**
 * @typedef {object} Status
 * @property {"connecting" | "live" | "reconnecting" | "offline"} state
 * @property {string} reason why it is not live
 * @property {number | null} retryAt when the next attempt is due, on the clock of performance.now()
 * @property {number} received events so far
 * @property {number} reconnects
 * @property {number} replayed events that were missed first and came after a reconnect
 * @property {number} lost channels that could not be continued without a gap
 * @property {string} news what the last reconnect brought
 * @property {number | null} latency milliseconds from an event's timestamp to its arrival here
 * @property {string} lastId
 * @property {string} clientId
 */

/**
 * @typedef {object} Listener
 * @property {() => void} onBegin the first connection stands: from here on no event is missed
 * @property {(event: {id: string, channel: string, event: string, data: any}) => void} onEvent
 * @property {(channel: string, reason: string) => void} onReset what is shown of the channel has a gap
 * @property {(status: Status) => void} onStatus
 * @property {() => void} onExpired the login is of no more use
 */

/** A stream on some channels, from its making to `stop`. */
export class Live {
  #client;
  #listener;
  #replays;
  #latencies = [];
  #skew = 0;
  #connectedAt = Infinity; // by the server's clock
  #lostAt = null;
  #away = ""; // for how long, before this connection
  #missed = 0; // on this connection
  #status = {
    state: "connecting",
    reason: "",
    retryAt: null,
    received: 0,
    reconnects: -1, // the first connection makes it 0
    replayed: 0,
    lost: 0,
    news: "",
    latency: null,
    lastId: "",
    clientId: "",
  };

  /**
   * @param {import("./session.js").Session} session
   * @param {string[]} channels
   * @param {Listener} listener
   * @param {object} [options] more of the client's options; `replays: false` where the channels have no history
   */
  constructor(session, channels, listener, { replays = true, ...options } = {}) {
    this.#listener = listener;
    this.#replays = replays;
    this.#client = new SSEClient("/api/v1/sse", {
      ...options,
      channels,
      token: (wanted) => session.streamToken(wanted),
      onOpen: (info) => this.#onOpen(info),
      onEvent: (event) => this.#onEvent(event),
      onReset: ({ channel, reason }) => this.#onReset(channel, reason),
      onReconnect: ({ delay, reason }) => this.#onReconnect(delay, reason),
      onClose: ({ reason, status }) => this.#onClose(reason, status),
    });
  }

  /** Closes the stream for good. */
  stop() {
    this.#listener = null;
    this.#client.close();
  }

  /** Connects without waiting any longer, unless the stream is live. */
  retryNow() {
    if (this.#status.state === "live") return;
    this.#tell({ state: "reconnecting", retryAt: null });
    this.#client.connect();
  }

  #onOpen(info) {
    const at = Date.parse(info.timestamp);
    this.#skew = Math.abs(Date.now() - at) > SKEWED ? Date.now() - at : 0;
    this.#connectedAt = at;
    const reconnects = this.#status.reconnects + 1;
    const away = this.#lostAt === null ? "" : `back after ${((performance.now() - this.#lostAt) / 1000).toFixed(1)} s`;
    this.#lostAt = null;
    this.#tell({
      state: "live",
      reason: "",
      retryAt: null,
      reconnects,
      news: away && this.#replays ? `${away}, nothing was missed` : away,
      lastId: this.#client.lastEventId,
      clientId: info.client_id,
    });
    this.#away = away;
    this.#missed = 0;
    if (reconnects === 0) this.#listener.onBegin();
  }

  #onEvent({ id, type, channel, data }) {
    const at = Date.parse(data?.timestamp);
    const missed = id !== "" && this.#status.reconnects > 0 && at < this.#connectedAt;
    const changes = { lastId: this.#client.lastEventId, received: this.#status.received + 1 };
    if (missed) {
      this.#missed += 1;
      changes.replayed = this.#status.replayed + 1;
      changes.news = `${this.#away}, ${this.#missed} missed and replayed`;
    } else if (!Number.isNaN(at)) changes.latency = this.#median(Math.max(0, Date.now() - at - this.#skew));
    this.#listener.onEvent({ id, channel, event: type, data });
    if (this.#listener) this.#tell(changes);
  }

  #median(latency) {
    this.#latencies = [...this.#latencies, latency].slice(-LATENCIES);
    return this.#latencies.toSorted((a, b) => a - b)[Math.floor(this.#latencies.length / 2)];
  }

  #onReset(channel, reason) {
    this.#tell({ lost: this.#status.lost + 1, news: `${this.#away}, with a gap on ${channel}` });
    this.#listener?.onReset(channel, reason);
  }

  #onReconnect(delay, reason) {
    this.#lostAt ??= performance.now();
    const why = REASONS[reason] ?? String(reason).replaceAll("_", " ");
    this.#tell({
      state: reason === "offline" ? "offline" : "reconnecting",
      reason: why,
      retryAt: performance.now() + delay,
    });
  }

  #onClose(reason, status) {
    if (!this.#listener) return;
    if (status === 401 || reason === "token") return this.#listener.onExpired();
    const why = { kicked: "an operator ended this connection", revoked: "an operator revoked this login" };
    this.#tell({ state: "offline", reason: why[reason] ?? `refused: ${reason.replaceAll("_", " ")}`, retryAt: null });
  }

  #tell(changes) {
    Object.assign(this.#status, changes);
    this.#listener?.onStatus({ ...this.#status });
  }
}
