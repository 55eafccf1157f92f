// What one panel shows of one channel: history first, then live events, each once and in the order of the log.

const TRIES = 3;
const PAUSE = 2000; // milliseconds between two tries
const HELD = 5000; // live events kept while history is on its way

/** @typedef {{id: string, channel: string, event: string, data: any}} Received */
/** @typedef {{clear: () => void, apply: (event: Received, live: boolean) => void}} Panel */

/** Leads a channel's events into its panel. */
export class Feed {
  #panel;
  #history;
  #last = ""; // the id of the last event shown
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
   * @returns {Promise<void>} rejected where the history cannot be fetched; live events come in any case
   */
  async refill() {
    const turn = ++this.#turn;
    this.#held = [];
    try {
      const events = await this.#fetch(turn);
      if (turn !== this.#turn) return;
      this.#last = "";
      this.#panel.clear();
      for (const event of events) this.#show(event, false);
    } finally {
      if (turn === this.#turn) this.#release();
    }
  }

  /** Empties the panel; an answer that still comes is ignored. */
  stop() {
    this.#turn += 1;
    this.#held = null;
    this.#last = "";
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

  /** History and stream overlap: what was shown from the one comes again from the other. */
  #show(event, live) {
    if (follows(event.id, this.#last)) {
      this.#last = event.id;
      if (typeof event.data === "object" && event.data) this.#panel.apply(event, live); // a text is none of a panel's events
    }
  }
}

/** Tells whether an event comes after another; one of another epoch is of another log, where all is new. */
function follows(id, last) {
  const [epoch, seq] = id.split("-");
  const [lastEpoch, lastSeq] = last.split("-");
  return epoch !== lastEpoch || Number(seq) > Number(lastSeq);
}
