// What one panel shows of one channel: history first, then live events, each once and in the order of the log.

import { isSeen, parseEventId } from "./event_id.js";

const TRIES = 3;
const PAUSE = 2000; // milliseconds between two tries
const HELD = 5000; // live events kept while history is on its way

/** @typedef {import("./stream.js").Received} Received */
/** @typedef {{clear: () => void, apply: (event: Received, live: boolean) => void}} Panel */

/** Leads a channel's events into its panel. */
export class Feed {
  #panel;
  #history;
  #last = null;
  #held = null; // live events that wait for history, or null
  #turn = 0;

  /**
   * @param {Panel} panel
   * @param {() => Promise<Received[]>} history gets the channel's last events, oldest first
   */
  constructor(panel, history) {
    this.#panel = panel;
    this.#history = history;
  }

  /** @param {Received} event one from the stream */
  take(event) {
    if (this.#held === null) this.#show(event, true);
    else if (this.#held.push(event) > HELD) this.#held.shift();
  }

  /**
   * Empties the panel and fills it from history. Live events wait meanwhile, so that none is lost or out of order.
   * @returns {Promise<void>} rejected where history cannot be had; live events go on all the same
   */
  async refill() {
    const turn = ++this.#turn;
    this.#held = [];
    this.#last = null;
    this.#panel.clear();
    try {
      const events = await this.#fetch(turn);
      if (turn === this.#turn) for (const event of events) this.#show(event, false);
    } finally {
      if (turn === this.#turn) this.#release();
    }
  }

  /** Empties the panel; whatever is still on its way is ignored. */
  stop() {
    this.#turn += 1;
    this.#held = null;
    this.#last = null;
    this.#panel.clear();
  }

  async #fetch(turn) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#history();
      } catch (error) {
        if (attempt === TRIES || turn !== this.#turn || error.status === 401) throw error;
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    }
  }

  #release() {
    const held = this.#held ?? [];
    this.#held = null;
    for (const event of held) this.#show(event, true);
  }

  #show(event, live) {
    const position = parseEventId(event.id);
    if (isSeen(position, this.#last)) return;
    this.#last = position;
    this.#panel.apply(event, live);
  }
}
