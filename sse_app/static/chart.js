// A line chart in SVG: a few lines over one axis, drawn to the size of its box. Colours come from the style sheet.

import { oncePerFrame } from "./dom.js";
import { linePath, niceTicks, scale } from "./chart_geometry.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 8, right: 10, bottom: 22, left: 56 }; // pixels
const TICK_EVERY = { x: 130, y: 34 }; // pixels, about

/** @typedef {{x: number, label: string, y: (number | null)[]}} Point `y` has a value for each line */

/**
 * @typedef {object} ChartOptions
 * @property {string} label what the chart shows, for those who do not see it
 * @property {{name: string, area?: boolean}[]} lines an area is filled down (or up) to zero
 * @property {(value: number, step: number) => string} formatTick a value on the axis, and the step between two
 * @property {(value: number) => string} formatValue a value at the pointer
 * @property {[number, number]} [xRange] of the x axis; else that of the points
 * @property {[number, string][]} [xTicks] fixed marks on the x axis; else labels of points
 * @property {[number, number]} [yInclude] values that the y axis reaches in any case
 * @property {boolean} [hideLabels] no labels on the x axis, for a chart above another with the same
 */

/** Draws points into a box, again whenever the box or the points change. */
export class LineChart {
  #box;
  #options;
  #svg = element("svg", { role: "img" });
  #points = [];
  #pointerX = null;
  #redraw = oncePerFrame(() => this.#draw());

  /**
   * @param {HTMLElement} box
   * @param {ChartOptions} options
   */
  constructor(box, options) {
    this.#box = box;
    this.#options = options;
    box.append(this.#svg);
    new ResizeObserver(this.#redraw).observe(box);
    box.addEventListener("pointermove", (event) => this.#point(event.clientX - box.getBoundingClientRect().left));
    box.addEventListener("pointerleave", () => this.#point(null));
  }

  /** @param {Point[]} points in the order of x; the array is not copied */
  show(points) {
    this.#points = points;
    this.#redraw();
  }

  #point(x) {
    this.#pointerX = x;
    this.#redraw();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#box;
    if (!width || !height) return;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.setAttribute("aria-label", this.#summary());
    const points = this.#points;
    if (!points.length) {
      this.#svg.replaceChildren(text(width / 2, height / 2, "Waiting for data", "chart-empty", "middle"));
      return;
    }
    const plot = this.#plot(width, height);
    this.#svg.replaceChildren(
      ...this.#yAxis(plot),
      ...(this.#options.hideLabels ? [] : this.#xAxis(plot)),
      ...this.#options.lines.flatMap((line, number) => this.#line(plot, line, number)),
      ...this.#pointer(plot),
    );
  }

  /** Works out where everything goes. */
  #plot(width, height) {
    const { xRange, yInclude = [], hideLabels } = this.#options;
    const points = this.#points;
    const box = {
      left: MARGIN.left,
      right: width - MARGIN.right,
      top: MARGIN.top,
      bottom: height - (hideLabels ? MARGIN.top : MARGIN.bottom),
    };
    const values = points.flatMap((point) => point.y).filter((value) => value !== null);
    const ticks = niceTicks([...values, ...yInclude], Math.max(2, Math.round((box.bottom - box.top) / TICK_EVERY.y)));
    const [first, last] = xRange ?? [points[0].x, points[points.length - 1].x];
    return {
      ...box,
      ticks,
      x: scale(first, last, box.left, box.right),
      y: scale(ticks.low, ticks.high, box.bottom, box.top),
    };
  }

  #yAxis(plot) {
    return plot.ticks.values.flatMap((value) => [
      element("line", { class: "chart-grid", x1: plot.left, x2: plot.right, y1: plot.y(value), y2: plot.y(value) }),
      text(plot.left - 8, plot.y(value) + 4, this.#options.formatTick(value, plot.ticks.step), "chart-tick", "end"),
    ]);
  }

  #xAxis(plot) {
    const labels = [];
    let free = plot.left;
    for (const [at, label] of this.#options.xTicks ?? this.#pointTicks(plot)) {
      const half = label.length * 3.4; // about half of its width
      const x = Math.min(Math.max(plot.x(at), plot.left + half), plot.right - half);
      if (x - half < free) continue;
      labels.push(text(x, plot.bottom + 16, label, "chart-tick", "middle"));
      free = x + half + 8;
    }
    return labels;
  }

  /** Chooses points at even distances for their labels. */
  #pointTicks(plot) {
    const points = this.#points;
    const end = points.length - 1;
    const steps = Math.min(end, Math.floor((plot.x(points[end].x) - plot.x(points[0].x)) / TICK_EVERY.x)) || 1;
    const chosen = Array.from({ length: steps + 1 }, (_, step) => points[Math.round((step / steps) * end)]);
    return chosen.map(({ x, label }) => [x, label]);
  }

  #line(plot, line, number) {
    const places = this.#points.map(({ x, y }) => [plot.x(x), y[number] === null ? null : plot.y(y[number])]);
    const parts = [];
    const path = (kind, base) => element("path", { class: `chart-${kind} ${kind}-${line.name}`, d: linePath(places, base) });
    if (line.area) parts.push(path("area", plot.y(0)));
    parts.push(path("line"));
    const [x, y] = places[places.length - 1];
    if (y !== null) parts.push(element("circle", { class: `chart-dot dot-${line.name}`, cx: x, cy: y, r: 3 }));
    return parts;
  }

  #pointer(plot) {
    if (this.#pointerX === null) return [];
    const distance = (point) => Math.abs(plot.x(point.x) - this.#pointerX);
    const point = this.#points.reduce((best, each) => (distance(each) < distance(best) ? each : best));
    const x = plot.x(point.x);
    const values = point.y.map((value) => (value === null ? "–" : this.#options.formatValue(value)));
    const content = [point.label, ...values].join("  ");
    const [at, anchor] = x > (plot.left + plot.right) / 2 ? [x - 6, "end"] : [x + 6, "start"];
    return [
      element("line", { class: "chart-pointer", x1: x, x2: x, y1: plot.top, y2: plot.bottom }),
      text(at, plot.top + 10, content, "chart-value", anchor),
    ];
  }

  #summary() {
    const last = this.#points[this.#points.length - 1];
    if (!last) return `${this.#options.label}: no data yet`;
    const values = last.y.filter((value) => value !== null).map(this.#options.formatValue);
    return `${this.#options.label}: ${values.join(", ")} at ${last.label}`;
  }
}

function element(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

function text(x, y, content, className, anchor) {
  const made = element("text", { x, y, class: className, "text-anchor": anchor });
  made.textContent = content;
  return made;
}
