// What a client has to heed in a page or a worker of a browser: freezing and caching, a network that comes and goes,
// other tabs, and a server that the page cannot reach. Elsewhere, as in Node.js, this is not loaded.

/** Returns what adds listeners, to a target that may not be there or have none, until the signal. */
const listener = (signal) => (target, type, act) => target?.addEventListener?.(type, act, { signal });

/** The stream of a client in a page: of its own, or a place among the tabs that share one. */
export class Place {
  #parts;
  #link = null;
  #life = new AbortController(); // aborted by `stop`
  #away = false; // the page is frozen or cached
  #hint; // why the page cannot reach the server, once that has been asked

  /** @param {object} parts see `Tab` in sse-shared.js */
  constructor({ Connection, client, ...parts }) {
    if (parts.options.persist) keepPosition(client, parts.options);
    this.#parts = {
      ...parts,
      Connection: heedful(Connection),
      tell: (kind, detail) => parts.tell(kind, kind === "open" || kind === "reconnect" ? this.#explained(kind, detail) : detail),
    };
  }

  start() {
    const { signal } = this.#life;
    const on = listener(signal);
    // A page that is frozen or cached may not hold a connection; it closes it, and resumes from its position later.
    const leave = () => {
      this.#away = true;
      this.#link?.stop();
      this.#parts.tell("away");
    };
    const comeBack = () => {
      const wasAway = this.#away;
      this.#away = false;
      if (wasAway) this.#join(signal);
    };
    // What another user may read is not this one's to see, not even until the server ends the stream.
    on(this.#parts.options.session, "change", () => {
      if (this.#away) return;
      leave();
      this.#parts.tell("reconnect", { delay: 0, reason: "user", attempt: 1 });
      if (!signal.aborted) comeBack();
    });
    on(globalThis.document, "visibilitychange", () => this.#link?.wake?.());
    on(globalThis, "pagehide", leave);
    on(globalThis.document, "freeze", leave);
    on(globalThis, "pageshow", comeBack);
    on(globalThis.document, "resume", comeBack);
    this.#join(signal);
  }

  stop() {
    this.#life.abort();
    this.#link?.stop();
  }

  async #join(signal) {
    const { options, tell, where, Connection } = this.#parts;
    if (!this.#link) {
      const canShare = options.share && globalThis.BroadcastChannel && navigator.locks;
      const shared = canShare ? await import("./sse-shared.js").catch(() => null) : null;
      if (signal.aborted || this.#away || this.#link) return;
      this.#link = shared ? new shared.Tab(this.#parts) : new Connection(options, tell);
    }
    this.#link.position = where();
    this.#link.start();
  }

  /** Adds what keeps a page from a server that it has never reached, as soon as that is known. */
  #explained(kind, detail) {
    if (kind === "open") this.#hint = "";
    else if (this.#hint == null && ["unreachable", "token"].includes(detail.reason)) {
      this.#hint = "";
      import("./sse-explain.js")
        .then(({ explain }) => explain(`${this.#parts.options.url}/status`))
        .then((hint) => (this.#hint = hint), () => (this.#hint = null));
    }
    return this.#hint ? { ...detail, hint: this.#hint } : detail;
  }
}

/** Keeps the position of a client over page loads; one that it has already counts. */
function keepPosition(client, { persist, url, channels }) {
  if (Object.getOwnPropertyDescriptor(client, "lastEventId").get) return; // it has been here before
  const key = `sse-client ${persist === true ? `${url}/${[...channels]}` : persist}`;
  let position = client.lastEventId ?? stored(key);
  const store = (id) => {
    position = id;
    try {
      sessionStorage[key] = id ?? "";
    } catch {
      // No storage, or it is full: the position lives as long as the page.
    }
  };
  Object.defineProperty(client, "lastEventId", { get: () => position, set: store, enumerable: true });
  store(position);
}

function stored(key) {
  try {
    const id = sessionStorage[key];
    return id?.length < 128 && /-\d+$/.test(id) ? id : undefined;
  } catch {
    return undefined;
  }
}

/** Returns a connection that heeds what the browser says of the network, and that a machine has slept. */
function heedful(Connection) {
  return class extends Connection {
    #heeding = new AbortController();

    start(token) {
      this.#heeding.abort();
      this.#heeding = new AbortController();
      const on = listener(this.#heeding.signal);
      for (const type of ["online", "offline", "pageshow"]) on(globalThis, type, () => this.heed(type));
      on(globalThis.document, "visibilitychange", ({ type }) => this.heed(type));
      super.start(token);
    }

    stop() {
      this.#heeding.abort();
      super.stop();
    }
  };
}
