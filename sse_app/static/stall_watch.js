// Notices that a stream has fallen silent: pings come at an even pace, so a long silence is a dead connection.

const ASSUMED_INTERVAL = 30_000; // milliseconds between pings, until two were seen
const PATIENCE = 2.5; // ping intervals
const GAPS = 3; // the longest of so many is taken, for a paused tab receives its pings in a bunch

/** Calls back once when no sign of life has come for 2.5 ping intervals. */
export class StallWatch {
  #onStall;
  #timer = 0;
  #lastSign = 0;
  #lastPing = 0;
  #gaps = [];

  /** @param {() => void} onStall */
  constructor(onStall) {
    this.#onStall = onStall;
  }

  /** Begins to watch a new connection. */
  start() {
    this.stop();
    this.#lastSign = performance.now();
    this.#timer = setInterval(() => this.#look(), 1000);
  }

  /** Ends watching. */
  stop() {
    clearInterval(this.#timer);
    this.#lastPing = 0;
    this.#gaps = [];
  }

  /** Takes note that something came. */
  sign() {
    this.#lastSign = performance.now();
  }

  /** Takes note of a ping, from which the pace is learned. */
  ping() {
    const now = performance.now();
    if (this.#lastPing) this.#gaps = [...this.#gaps, now - this.#lastPing].slice(-GAPS);
    this.#lastPing = now;
    this.sign();
  }

  #look() {
    const interval = this.#gaps.length ? Math.max(1000, ...this.#gaps) : ASSUMED_INTERVAL;
    if (performance.now() - this.#lastSign <= PATIENCE * interval) return;
    this.stop();
    this.#onStall();
  }
}
