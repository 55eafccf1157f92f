// A line chart: a few lines over one axis, drawn by uPlot to the size of its box. Colours come from the style sheet.

import { oncePerFrame, make, setText } from "./dom.js";
import uPlot from "./vendor/uplot.js";

const GAP = 8; // pixels between a label and its axis
const X_SPACE = 84; // pixels that a label on the x axis takes at least
const LABEL = 7; // pixels that a character of a label takes at most
const Y_SIZE = 64; // pixels that the y axis takes at least
const FONT = '11px "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

const dark = matchMedia("(prefers-color-scheme: dark)");

/** @typedef {{x: number, label: string, y: (number | null)[]}} Point `y` has a value for each line */

/**
 * @typedef {object} ChartOptions
 * @property {string} label what the chart shows, for those who do not see it
 * @property {{name: string, area?: boolean, colour?: string}[]} lines an area is filled to zero; a colour of the sheet
 * @property {(value: number, step: number, largest: number) => string} formatTick a value on the axis, the step between
 *   two, and the largest without its sign
 * @property {(value: number) => string} formatValue a value at the pointer
 * @property {[number, number]} [xRange] of the x axis; else that of the points
 * @property {number[]} [xSteps] between two labels on the x axis
 * @property {number} [xSpace] pixels that a label there takes at least
 * @property {(value: number) => string} [formatX] a value on the x axis; else the label of the point there
 * @property {number[]} [yInclude] values that the y axis reaches in any case
 * @property {boolean} [hideLabels] no labels on the x axis, for a chart above another with the same
 */

/** Draws points into a box, again whenever the box or the points change. */
export class LineChart {
  #box;
  #options;
  #plot = null;
  #points = [];
  #labels = new Map();
  #readout = make("p", "chart-readout");
  #empty = make("p", "chart-empty", "Waiting for data");
  #redraw = oncePerFrame(() => this.#draw());
  #watch = new ResizeObserver(this.#redraw);
  #onTheme = () => this.#plot?.redraw();

  /**
   * @param {HTMLElement} box
   * @param {ChartOptions} options
   */
  constructor(box, options) {
    this.#box = box;
    this.#options = options;
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", `${options.label}: no data yet`);
    box.append(this.#empty, this.#readout);
    this.#watch.observe(box);
    dark.addEventListener("change", this.#onTheme);
  }

  /** @param {Point[]} points in the order of x; the array is not copied */
  show(points) {
    this.#points = points;
    this.#redraw();
  }

  /** Takes the chart away. */
  remove() {
    this.#watch.disconnect();
    dark.removeEventListener("change", this.#onTheme);
    this.#plot?.destroy();
    this.#plot = null;
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#box;
    if (!width || !height || !this.#box.isConnected) return;
    this.#plot ??= this.#make(width, height);
    if (this.#plot.width !== width || this.#plot.height !== height) this.#plot.setSize({ width, height });
    const points = this.#points;
    const last = points[points.length - 1];
    this.#empty.hidden = points.length > 0;
    this.#labels = new Map(points.map(({ x, label }) => [x, label]));
    this.#plot.setData([
      points.map(({ x }) => x),
      ...this.#options.lines.map((_, number) => points.map(({ y }) => y[number])),
    ]);
    this.#box.dataset.points = String(points.length);
    this.#box.dataset.gaps = String(points.filter(({ y }) => y.every((value) => value === null)).length);
    this.#box.dataset.last = last?.label ?? "";
    this.#box.setAttribute("aria-label", `${this.#options.label}: ${last ? this.#said(last) : "no data yet"}`);
  }

  #said({ label, y }) {
    const { lines, formatValue } = this.#options;
    const values = y.map((value, number) => {
      const text = value === null ? "–" : formatValue(value);
      return lines.length > 1 ? `${lines[number].name} ${text}` : text;
    });
    return `${values.join(", ")} at ${label}`;
  }

  #make(width, height) {
    const { lines, hideLabels } = this.#options;
    const options = {
      ...{ width, height, padding: [10, this.#options.xSpace ? 18 : 34, hideLabels ? 6 : 0, 0] },
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: this.#options.xRange && (() => this.#options.xRange) },
        y: { range: this.#yRange },
      },
      axes: [this.#xAxis(), this.#yAxis()],
      series: [{}, ...lines.map((line) => this.#series(line))],
      hooks: { setCursor: [(plot) => this.#point(plot.cursor.idx)] },
    };
    return new uPlot(options, [[]], this.#box);
  }

  #series({ area, colour = "accent" }) {
    return {
      stroke: () => colourOf(`--${colour}`),
      width: 1.6,
      fill: area ? () => colourOf(colour === "bad" ? "--bad-area" : "--area") : undefined,
      fillTo: 0,
      spanGaps: false,
      points: { show: (plot) => plot.data[0].length < 2 },
    };
  }

  #xAxis() {
    const { formatX, hideLabels } = this.#options;
    const text = (value) => formatX?.(value) ?? this.#labels.get(value) ?? "";
    return {
      show: !hideLabels,
      space: this.#options.xSpace ?? X_SPACE,
      incrs: this.#options.xSteps ?? [1, 2, 5, 10, 20, 50, 100, 200, 500],
      ...(formatX ? {} : { splits: (plot) => this.#labelled(plot) }),
      ...{ stroke: () => colourOf("--soft"), font: FONT, gap: GAP, size: 30 },
      values: (plot, ticks) => ticks.map(text),
      grid: { show: false },
      ticks: { show: false },
    };
  }

  /** Returns which points have labels: the last one, and as many others before it as there is room for. */
  #labelled(plot) {
    const points = this.#points;
    const most = Math.max(1, Math.floor(plot.bbox.width / devicePixelRatio / X_SPACE));
    const step = Math.max(1, Math.ceil(points.length / most));
    return points.filter((_, number) => (points.length - 1 - number) % step === 0).map(({ x }) => x);
  }

  #yAxis() {
    return {
      ...{
        stroke: () => colourOf("--soft"),
        font: FONT,
        gap: GAP,
        size: (plot, labels) => Math.max(Y_SIZE, GAP + LABEL * Math.max(0, ...(labels ?? []).map((each) => each.length))),
        space: (plot) => (plot.height < 100 ? 16 : 30),
      },
      values: (plot, ticks, axis, space, step) => {
        const largest = Math.max(...ticks.map(Math.abs));
        return ticks.map((tick) => this.#options.formatTick(tick, step, largest));
      },
      grid: { stroke: () => colourOf("--grid"), width: 1 },
      ticks: { show: false },
    };
  }

  #yRange = (plot, low, high) => {
    const values = [low, high, ...(this.#options.yInclude ?? [])].filter((value) => value != null);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    if (!values.length) return [0, 1];
    if (least === most) return [Math.min(0, least), most > 0 ? most * 1.2 : least < 0 ? 0 : 1];
    const air = (most - least) * 0.06;
    const ends = this.#options.yInclude ?? [];
    return [ends.includes(least) ? least : least - air, ends.includes(most) ? most : most + air];
  };

  #point(index) {
    const point = index == null ? undefined : this.#points[index];
    setText(this.#readout, point ? this.#said(point) : "");
  }
}

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
