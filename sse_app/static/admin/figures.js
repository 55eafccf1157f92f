// The figures of the last minutes, as they came, and as points of charts.

import { shallowRef } from "../vendor/vue.js";

const KEPT = 300;

/** The figures in the order of their time, each once. */
export class Figures {
  #kept = new Map(); // by the start and the count, which tell one from all others, whichever worker they come from

  /** The newest, or null; it changes whenever anything has. */
  latest = shallowRef(null);

  /** @param {object[]} figures they may be old, and known */
  add(figures) {
    for (const each of figures) this.#kept.set(`${each.started_at} ${each.number}`, each);
    const inOrder = [...this.#kept].sort(([, a], [, b]) => timeOf(a) - timeOf(b)).slice(-KEPT);
    this.#kept = new Map(inOrder);
    this.latest.value = inOrder.length ? { ...inOrder[inOrder.length - 1][1] } : null;
  }

  /**
   * Returns the points of a chart; where figures are missing the line is broken.
   * @param {(figures: any) => (number | null)[]} read a value for each line
   * @returns {import("../chart.js").Point[]}
   */
  points(read) {
    const points = [];
    let last = null;
    for (const each of this.#kept.values()) {
      const x = timeOf(each);
      // Workers count each a little apart: one number may be left out where the stream has moved to another.
      const goesOn = last && last.started_at === each.started_at && each.number - last.number <= 2;
      if (last && !goesOn) points.push({ x: (timeOf(last) + x) / 2, label: "", y: read(each).map(() => null) });
      points.push({ x, label: time(x), y: read(each) });
      last = each;
    }
    return points;
  }
}

/** @param {number} seconds since the epoch */
export function time(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

function timeOf(figures) {
  return Date.parse(figures.timestamp) / 1000;
}
