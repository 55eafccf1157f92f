// A stream and its state, for any framework: Vue has it as refs, React and Svelte as a value that is replaced.

import { Stream } from "./shared-stream.js";
import { complete, defaults, placeOf } from "./settings.js";

const NOWHERE = { url: "", channels: new Set() };

export const INITIAL = Object.freeze({
  isConnected: false,
  status: "idle", // idle, connecting, connected, reconnecting, closed or failed
  error: null,
  lastEvent: null,
  lastEventId: "",
  connectionCount: 0,
  retryCount: 0,
});

export class StreamState {
  state = INITIAL;
  #options; // returns the options as they are now
  #publish;
  #target = []; // the URL and the channels that are wanted
  #place = NOWHERE; // where that leads
  #wanted = false; // by `connect`, also while there is no URL yet
  #stream;
  #view;

  /**
   * @param {() => object} options
   * @param {(changes: object) => void} publish takes what has changed of the state
   */
  constructor(options, publish) {
    this.#options = options;
    this.#publish = publish;
    this.#stream = new Stream(() => ({ ...complete(options()), url: this.#place.url }), true);
    this.#view = {
      channels: this.#place.channels,
      onOpen: (info) => {
        const connectionCount = this.state.connectionCount + 1;
        const { lastEventId } = this.#stream;
        this.#set({ status: "connected", error: null, retryCount: 0, connectionCount, lastEventId });
        this.#call("onOpen", info);
      },
      onEvent: (event) => {
        this.#set({ lastEvent: event, lastEventId: event.id || this.state.lastEventId });
        this.#call("onEvent", event);
      },
      onReset: (detail) => this.#call("onReset", detail),
      onReturn: () => this.#set({ status: "connecting" }),
      onReconnect: (detail) => {
        this.#set({ status: "reconnecting", retryCount: this.state.retryCount + 1 });
        this.#call("onReconnect", detail);
      },
      onClose: (detail) => {
        const error = Object.assign(new Error(`the stream ended: ${detail.reason}`), detail);
        this.#set(detail.reason === "closed" ? { status: "closed" } : { status: "failed", error });
        this.#call("onClose", detail);
      },
    };
  }

  #set(changes) {
    const { status = this.state.status } = changes;
    const all = { ...changes, isConnected: status === "connected" };
    this.state = { ...this.state, ...all };
    this.#publish(all);
  }

  #call(callback, detail) {
    (this.#options()[callback] ?? defaults[callback])?.(detail);
  }

  get #isRunning() {
    return !["idle", "closed", "failed"].includes(this.state.status);
  }

  #locate() {
    const [url, channels] = this.#target;
    this.#place = placeOf(url, channels, this.#options().baseURL ?? defaults.baseURL);
    this.#view.channels = this.#place.channels;
  }

  /** Reopens the stream at a URL, on channels. Channels that it had before lose no event; without a URL it waits. */
  go(url, channels) {
    this.#target = [url, channels];
    if (!this.#wanted) return;
    const before = this.#place;
    this.#locate();
    const { url: to, channels: names } = this.#place;
    if (to !== before.url || ![...names].some((channel) => before.channels.has(channel))) {
      this.#stream.leave(this.#view);
      this.#forget();
    }
    if (this.#isRunning) this.#stream.join(this.#view);
    else this.connect();
  }

  connect() {
    if (typeof document === "undefined") return; // a server renders the page
    this.#wanted = true;
    if (this.state.status === "reconnecting") this.#stream.connect();
    if (this.#isRunning) return;
    this.#locate();
    if (!this.#place.url || !this.#place.channels.size) return;
    this.#set({ status: "connecting" });
    this.#stream.join(this.#view);
  }

  disconnect() {
    this.#wanted = false;
    this.#stream.leave(this.#view);
    if (!this.#isRunning) return;
    this.#view.onClose({ reason: "closed", status: 0 });
  }

  /** Ends it without a word: what has shown it is gone. */
  stop() {
    this.#wanted = false;
    this.#stream.leave(this.#view);
    if (this.#isRunning) this.#set({ status: "idle" });
  }

  /** Forgets position, counts and error, and where it was running begins anew with what is new. */
  reset() {
    const running = this.#isRunning;
    this.disconnect();
    this.#forget();
    if (running) this.connect();
  }

  #forget() {
    this.#stream.restart();
    this.#set(INITIAL);
  }

  /** What a page may do with it, to be handed out. */
  get controls() {
    return {
      connect: () => this.connect(),
      disconnect: () => this.disconnect(),
      reset: () => this.reset(),
      addEventListener: (...args) => this.#stream.addEventListener(...args),
      removeEventListener: (...args) => this.#stream.removeEventListener(...args),
    };
  }
}
