// The client for sse_app's event streams: reconnects, misses nothing, gets nothing twice, and shares one
// stream among the tabs of a browser. `Connection` keeps a stream going; `SSEClient` is what a page uses.

import { Connection, isCovered, parse, pathOf } from "./sse-connection.js";

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;
const NOWHERE = "nowhere:"; // a URL of a client that was made outside of a page, and is not absolute

/** Tells whether an event id stands at or before another. Another epoch is another log, where all is new. */
function isSeen(id, last) {
  const split = (each) => /(.*)-(.*)/.exec(each) ?? [];
  const [, epoch, seq] = split(id);
  const [, lastEpoch, lastSeq] = split(last);
  return epoch === lastEpoch && Number(seq) <= Number(lastSeq);
}

function resolve(url) {
  const { document, location } = globalThis;
  try {
    return new URL(url, document?.baseURI ?? location?.href ?? `${NOWHERE}/`);
  } catch {
    throw invalid(url);
  }
}

const invalid = (url) => new DOMException(`${url} is no URL; outside of a page it must be absolute`, "SyntaxError");

/** A stream on some channels. Its events, types and options are described in the type declarations. */
export class SSEClient extends EventTarget {
  static CONNECTING = CONNECTING;
  static OPEN = OPEN;
  static CLOSED = CLOSED;
  CONNECTING = CONNECTING;
  OPEN = OPEN;
  CLOSED = CLOSED;
  onopen = null;
  onmessage = null;
  onerror = null;
  readyState = CLOSED;
  lastEventId;
  #options;
  #link = null; // a connection of its own, or a place among tabs that share one
  #generation = new AbortController(); // aborted with each start and stop: what belongs to an older one never fires
  #anew = false; // the order of ids begins anew, so nothing counts as seen

  constructor(url, options = {}) {
    super();
    const at = resolve(url);
    const path = at.pathname.replace(/\/+$/, "");
    const last = path.lastIndexOf("/");
    const channels = options.channels ?? decodeURIComponent(path.slice(last + 1));
    at.pathname = options.channels ? path || "/api/v1/sse" : path.slice(0, last);
    for (const name of ["from", "last", "since", "types", "rate"]) {
      const value = options[name];
      const ago = name === "since" && typeof value === "number";
      if (value != null) at.searchParams.set(name, ago ? `-${value}` : (value.toISOString?.() ?? value));
    }
    const { token, events, signal, autoConnect = true } = options;
    this.#options = {
      reconnectDelay: 1000,
      maxReconnectDelay: 30_000,
      pingInterval: 30_000,
      connectTimeout: 15_000,
      share: true,
      clientId: `web-${Math.random().toString(36).slice(2)}`,
      ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)),
      ...(/[?&](from|last|since)=/.test(at.search) && { share: false }), // other tabs have no part in its own beginning
      url: at.href.replace(/\/?([?#].*)?$/, ""),
      search: at.search,
      session: token, // if it is one
      token: token?.streamToken ? (wanted) => token.streamToken(wanted) : token,
      channels: new Set(typeof channels === "string" ? channels.split(",") : channels),
      events: events && new Set(events),
    };
    for (const type of ["open", "message", "error"]) {
      super.addEventListener(type, (event) => this[`on${type}`]?.call?.(this, event));
    }
    signal?.addEventListener("abort", () => this.close());
    if (autoConnect) this.connect();
  }

  get url() {
    const { url, channels, search } = this.#options;
    return `${url}/${pathOf(channels)}${search}`;
  }

  get withCredentials() {
    return !!this.#options.withCredentials;
  }

  /** Starts, or starts again after an end, after the last event seen. While it waits to reconnect it does so now. */
  connect() {
    if (this.readyState !== OPEN) this.#begin();
  }

  /** Gives up the connection that there is, and opens a new one after the last event seen, with a fresh token. */
  restart() {
    this.#begin(this.readyState !== CLOSED);
  }

  #begin(isRestart) {
    const { url, signal: over } = this.#options;
    if (over?.aborted) return;
    if (url.startsWith(NOWHERE)) throw invalid(url.slice(NOWHERE.length));
    const signal = this.#leave();
    this.#join(signal);
    if (isRestart) this.#hear(signal, "reconnect", { delay: 0, reason: "restart", attempt: 1 });
  }

  /** Ends it; nothing is left running, and nothing fires after `onClose`. */
  close() {
    if (this.readyState !== CLOSED) this.#end({ reason: "closed", status: 0 });
  }

  /** Forgets the position, so that the next connection begins with what is new; an open stream is not touched. */
  reset() {
    this.lastEventId = "";
  }

  addEventListener(type, ...rest) {
    super.addEventListener(type, ...rest);
    this.#options.events?.add(type);
  }

  async #join(signal) {
    this.readyState = CONNECTING;
    const options = this.#options;
    const tell = (kind, detail) => signal.aborted || this.#hear(signal, kind, detail);
    const where = () => this.lastEventId;
    const page = globalThis.location && (await import("./sse-page.js").catch(() => null));
    if (signal.aborted) return;
    const parts = { client: this, options, tell, where, Connection, isSeen };
    this.#link = page ? new page.Place(parts) : new Connection(options, tell);
    this.#link.position = where();
    this.#link.start();
  }

  #leave() {
    this.#generation.abort();
    this.#generation = new AbortController();
    this.#link?.stop();
    this.#link = null;
    return this.#generation.signal;
  }

  // No CustomEvent: Node.js 18 has none.
  #fire(type, detail, event = Object.assign(new Event(type), { detail })) {
    this.dispatchEvent(event);
  }

  #hear(signal, kind, detail) {
    const { onOpen, onEvent, onReset, onReconnect, channels, events, debug } = this.#options;
    const tell = (callback, value, type, event) => {
      call(callback, value);
      if (!signal.aborted) this.#fire(type, value, event);
    };
    if (debug) call(() => (debug.call ? debug : console.debug)("SSEClient", kind, detail));
    if (kind === "open") {
      if (!this.lastEventId || detail.replaced) this.lastEventId = detail.id;
      if (this.readyState === OPEN) return; // it was replaced, and nothing was missed
      this.readyState = OPEN;
      tell(onOpen, detail.info, "open");
    } else if (kind === "event") {
      const { id, type, data, channel, origin } = detail;
      if (id && !this.#anew && isSeen(id, this.lastEventId)) return;
      if (id) this.#anew = false;
      if (id != null) this.lastEventId = id;
      if (channel && !isCovered(channel, channels)) return; // another tab's
      const heard = !events || events.has(type) ? onEvent : null;
      const event = new MessageEvent(type, { data, origin, lastEventId: this.lastEventId });
      tell(heard, { id: id ?? "", type, channel, data: parse(data), text: data }, type, event);
    } else if (kind === "reset") {
      this.#anew ||= detail.all;
      if (isCovered(detail.channel, channels)) tell(onReset, detail, "reset");
    } else if (kind === "ping") {
      if (detail.id && !isSeen(detail.id, this.lastEventId)) this.lastEventId = detail.id; // over what the stream leaves out
    } else if (kind === "stop") this.#end(detail);
    else if (kind === "reconnect") {
      this.readyState = CONNECTING;
      tell(onReconnect, detail, "error");
    } else if (kind === "away") this.readyState = CONNECTING;
  }

  #end(detail) {
    this.#leave();
    this.readyState = CLOSED;
    call(this.#options.onClose, detail);
    if (detail.reason !== "closed") this.#fire("error", detail);
  }
}

/** Calls back; an error there is reported as the page's own, and disturbs nothing here. */
function call(callback, value) {
  try {
    callback?.(value);
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
