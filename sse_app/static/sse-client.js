// The client for sse_app's event streams: reconnects, misses nothing, gets nothing twice, and shares one
// stream among the tabs of a browser. `Connection` keeps a stream going; `SSEClient` is what a page uses.

import { Connection, isCovered, parse } from "./sse-connection.js";

const BEGINNINGS = ["from", "last", "since"];
const TYPES = ["message", "dashboard_update", "risk_alert", "training_progress", "backtest_progress"];

/** Tells whether an event id stands at or before another. Another epoch is another log, where all is new. */
function isSeen(id, last) {
  const [epoch, seq] = split(id);
  const [lastEpoch, lastSeq] = split(last);
  return epoch === lastEpoch && seq <= lastSeq;
}

function split(id) {
  const dash = `${id ?? ""}`.lastIndexOf("-");
  return dash < 0 ? [] : [id.slice(0, dash), Number(id.slice(dash + 1))];
}

/** A stream on some channels. Its events, types and options are described in the type declarations. */
export class SSEClient extends EventTarget {
  readyState = EventSource.CLOSED;
  lastEventId;
  #options;
  #link = null; // a connection of its own, or a place among tabs that share one
  #generation = new AbortController(); // aborted with each start and stop: what belongs to an older one never fires
  #away = false; // the page is frozen or cached
  #anew = false; // the order of ids begins anew, so nothing counts as seen
  #key;

  constructor(url, options = {}) {
    super();
    const at = new URL(url, location.href);
    const path = at.pathname.replace(/\/+$/, "");
    const last = path.lastIndexOf("/");
    const channels = options.channels ?? decodeURIComponent(path.slice(last + 1));
    at.pathname = options.channels ? path || "/api/v1/sse" : path.slice(0, last);
    const { from, last: count, since, types, rate } = options;
    const moment = since instanceof Date ? since.toISOString() : typeof since === "number" ? `-${since}` : since;
    for (const [name, value] of Object.entries({ from, last: count, since: moment, types, rate })) {
      if (value != null) at.searchParams.set(name, value);
    }
    const { search } = at;
    const begins = BEGINNINGS.some((name) => at.searchParams.has(name)); // others have no part in a tab's own beginning
    at.search = at.hash = "";
    const { events = types ? `${types}`.split(",") : TYPES, reconnectDelay = 1000, maxReconnectDelay = 30_000, maxRetries = Infinity } = options;
    const { pingInterval = 30_000, connectTimeout = 15_000, share = true, withCredentials = false } = options;
    const { clientId = `web-${Math.random().toString(36).slice(2)}`, persist } = options;
    const session = options.token?.streamToken && options.token;
    const token = session ? (wanted) => session.streamToken(wanted) : options.token;
    this.#options = {
      ...options,
      ...{ reconnectDelay, maxReconnectDelay, maxRetries, pingInterval, connectTimeout, share, withCredentials },
      ...{ url: at.href, search, clientId, token, session, ...(begins && { share: false }) },
      channels: new Set(typeof channels === "string" ? channels.split(",") : channels),
      types: new Set(events),
    };
    this.#key = persist && `sse-client ${persist === true ? `${at.href}/${[...this.#options.channels]}` : persist}`;
    this.lastEventId = this.#stored();
    if (options.autoConnect ?? true) this.connect();
  }

  get url() {
    return `${this.#options.url}/${[...this.#options.channels]}`;
  }

  /** Starts, or starts again after an end, after the last event seen. While it waits to reconnect it does so now. */
  connect() {
    if (this.readyState === EventSource.OPEN) return;
    const signal = this.#leave();
    const on = (target, type, act) => target?.addEventListener?.(type, act, { signal });
    // A page that is frozen or cached may not hold a connection; it closes it, and resumes from its position later.
    this.#away = false;
    const leave = () => {
      this.#away = true;
      this.#link?.stop();
      this.#link = null;
      this.readyState = EventSource.CONNECTING;
    };
    const comeBack = () => {
      const wasAway = this.#away;
      this.#away = false;
      if (wasAway) this.#join(signal);
    };
    // What another user may read is not this one's to see, not even until the server ends the stream.
    on(this.#options.session, "change", () => {
      if (this.#away) return;
      leave();
      this.#hear(signal, "reconnect", { delay: 0, reason: "user" });
      if (!signal.aborted) comeBack();
    });
    on(globalThis, "pagehide", leave);
    on(globalThis.document, "freeze", leave);
    on(globalThis, "pageshow", comeBack);
    on(globalThis.document, "resume", comeBack);
    this.#join(signal);
  }

  /** Ends it; nothing is left running, and nothing fires after `onClose`. */
  close() {
    if (this.readyState !== EventSource.CLOSED) this.#end({ reason: "closed", status: 0 });
  }

  /** Forgets the position, so that the next connection begins with what is new; an open stream is not touched. */
  reset() {
    this.#remember(undefined);
  }

  /** Listens as on an EventSource; the types of events need not be named to the constructor then. */
  addEventListener(type, ...rest) {
    super.addEventListener(type, ...rest);
    if (["open", "reset", "error"].includes(type) || this.#options.types.has(type)) return;
    this.#options.types.add(type);
    this.#link?.listen(type);
  }

  async #join(signal) {
    this.readyState = EventSource.CONNECTING;
    const tell = (kind, detail) => signal.aborted || this.#hear(signal, kind, detail);
    const options = this.#options;
    let shared;
    if (options.share && globalThis.BroadcastChannel && navigator.locks) {
      shared = await import("./sse-shared.js").catch(() => null);
      if (signal.aborted || this.#away || this.#link) return;
    }
    const where = () => this.lastEventId;
    this.#link = shared ? new shared.Tab({ options, tell, where, Connection, isSeen }) : new Connection(options, tell);
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

  #hear(signal, kind, detail) {
    const { onOpen, onEvent, onReset, onReconnect } = this.#options;
    const tell = (callback, value, event) => {
      call(callback, value);
      if (!signal.aborted) this.dispatchEvent(event);
    };
    if (kind === "open") {
      if (!this.lastEventId || detail.replaced) this.#remember(detail.id);
      if (this.readyState === EventSource.OPEN) return; // it was replaced, and nothing was missed
      this.readyState = EventSource.OPEN;
      tell(onOpen, detail.info, new CustomEvent("open", { detail: detail.info }));
    } else if (kind === "event") {
      const { id, type, data } = detail;
      if (id) {
        if (!this.#anew && isSeen(id, this.lastEventId)) return;
        this.#anew = false;
        this.#remember(id);
      }
      const { channels, types } = this.#options;
      const { channel } = detail;
      if ((channel && !isCovered(channel, channels)) || !types.has(type)) return; // another tab's
      const value = data === "null" ? null : parse(data);
      tell(onEvent, { id, type, channel, data: value, text: data }, new MessageEvent(type, { data, lastEventId: this.lastEventId }));
    } else if (kind === "reset") {
      this.#anew ||= detail.all;
      if (isCovered(detail.channel, this.#options.channels)) tell(onReset, detail, new CustomEvent("reset", { detail }));
    } else if (kind === "ping") {
      if (!isSeen(detail.id, this.lastEventId)) this.#remember(detail.id); // over what the stream leaves out
    } else if (kind === "reconnect") {
      this.readyState = EventSource.CONNECTING;
      tell(onReconnect, detail, new CustomEvent("error", { detail }));
    } else if (kind === "stop") this.#end(detail);
  }

  #end(detail) {
    this.#leave();
    this.readyState = EventSource.CLOSED;
    call(this.#options.onClose, detail);
    if (detail.reason !== "closed") this.dispatchEvent(new CustomEvent("error", { detail }));
  }

  #remember(id) {
    this.lastEventId = id;
    try {
      if (this.#key) sessionStorage[this.#key] = id ?? "";
    } catch {
      // No storage, or it is full: the position lives as long as the page.
    }
  }

  #stored() {
    try {
      const id = this.#key && sessionStorage[this.#key];
      return id?.length < 128 && split(id).length ? id : undefined;
    } catch {
      return undefined;
    }
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
