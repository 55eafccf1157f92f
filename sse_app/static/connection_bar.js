// The bar that says how the connection is.

import { find, oncePerFrame, setText } from "./dom.js";
import { count } from "./format.js";

const TITLES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", offline: "Offline" };

/** Shows the status of a stream, with a countdown to the next attempt. */
export class ConnectionBar {
  #element;
  #retry;
  #status = null;
  #timer = 0;
  #redraw = oncePerFrame(() => this.#draw());

  /**
   * @param {HTMLElement} element
   * @param {() => void} onRetry the button was pressed
   */
  constructor(element, onRetry) {
    this.#element = element;
    this.#retry = find("[data-retry]", element);
    this.#retry.addEventListener("click", onRetry);
  }

  /** @param {import("./live.js").Status} status */
  show(status) {
    this.#status = status;
    clearInterval(this.#timer);
    if (status.retryAt !== null) this.#timer = setInterval(this.#redraw, 250);
    this.#redraw();
  }

  /**
   * Says something that the stream's status does not say, in place of it.
   * @param {string} sentence
   */
  say(sentence) {
    this.#status = null;
    clearInterval(this.#timer);
    this.#state("offline", sentence, "");
    this.#retry.hidden = true;
  }

  #draw() {
    const status = this.#status;
    if (status === null) return;
    const isLive = status.state === "live";
    this.#state(status.state, isLive ? status.news : status.reason, countdown(status.retryAt));
    const hadFocus = document.activeElement === this.#retry;
    this.#retry.hidden = isLive || status.state === "connecting";
    if (hadFocus && this.#retry.hidden) this.#element.focus();
    const figures = {
      latency: status.latency === null ? "–" : `${count(status.latency)} ms`,
      received: count(status.received),
      reconnects: count(Math.max(0, status.reconnects)),
      replayed: count(status.replayed),
      lost: count(status.lost),
      last_id: status.lastId || "–",
      client_id: status.clientId || "–",
    };
    // A page leaves out what means nothing there.
    for (const place of this.#element.querySelectorAll("[data-figure]")) setText(place, figures[place.dataset.figure]);
  }

  #state(state, sentence, remaining) {
    this.#element.dataset.state = state;
    setText(find("[data-title]", this.#element), TITLES[state]);
    setText(find("[data-reason]", this.#element), sentence);
    setText(find("[data-countdown]", this.#element), remaining);
  }
}

function countdown(retryAt) {
  if (retryAt === null) return "";
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  return seconds > 0 ? `next attempt in ${seconds} s` : "trying now";
}
