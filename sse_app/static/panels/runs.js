// Runs of a computation that report their progress: the points of each, and which one to show.

const MOST_RUNS = 8;
const MOST_POINTS = 2000;

/**
 * @typedef {object} Run
 * @property {string} id
 * @property {any} last the data of its last event
 * @property {import("../chart.js").Point[][]} curves the points of each of its charts
 */

/** The latest runs. The one that began last is shown, so that runs side by side do not take turns on the screen. */
export class Runs {
  #runs = new Map();

  /** Forgets all runs. */
  clear() {
    this.#runs.clear();
  }

  /**
   * Takes in an event of a run.
   * @param {unknown} id
   * @param {any} data
   * @param {import("../chart.js").Point[]} points the next point of each chart
   */
  add(id, data, points) {
    const key = String(id);
    const run = this.#runs.get(key) ?? { id: key, last: data, curves: points.map(() => []) };
    run.last = data;
    points.forEach((point, number) => {
      run.curves[number].push(point);
      if (run.curves[number].length > MOST_POINTS) run.curves[number].shift();
    });
    this.#runs.set(key, run);
    if (this.#runs.size > MOST_RUNS) this.#runs.delete(this.#runs.keys().next().value);
  }

  /** @returns {Run | undefined} the run that began last */
  get shown() {
    return [...this.#runs.values()].pop();
  }
}
