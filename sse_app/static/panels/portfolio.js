// The portfolio panel: total value and drawdown as lines, and the figures of the last day.

import { LineChart } from "../chart.js";
import { find, oncePerFrame, setFigures } from "../dom.js";
import { axisMoney, axisPercent, count, fixed, isNumber, money, percent, words } from "../format.js";

const MOST_DAYS = 1000;

/** @implements {import("../feed.js").Panel} */
export class PortfolioPanel {
  #element;
  #value;
  #drawdown;
  #values = [];
  #drawdowns = [];
  #day = 0;
  #last = {};
  #redraw = oncePerFrame(() => this.#draw());

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    this.#value = new LineChart(find("[data-chart=value]", element), {
      label: "Total value of the portfolio in US dollars",
      lines: [{ name: "value" }],
      formatTick: axisMoney,
      formatValue: money,
      hideLabels: true,
    });
    this.#drawdown = new LineChart(find("[data-chart=drawdown]", element), {
      label: "Drawdown of the portfolio",
      lines: [{ name: "drawdown", area: true, colour: "bad" }],
      formatTick: axisPercent,
      formatValue: (value) => percent(value),
      yInclude: [0],
    });
    this.clear();
  }

  /** Forgets everything. */
  clear() {
    this.#startOver();
    this.#last = {};
    this.#redraw();
  }

  /** @param {import("../feed.js").Received} event */
  apply({ event, data }) {
    if (event !== "dashboard_update" || data.update_type !== "metrics") return;
    const metrics = data.data;
    if (typeof metrics !== "object" || metrics === null) return;
    // A day before the last one begins another pass over the bars.
    if (String(metrics.date) < String(this.#last.date ?? "")) this.#startOver();
    this.#last = metrics;
    this.#day += 1;
    const point = { x: this.#day, label: String(metrics.date ?? "") };
    this.#add(this.#values, { ...point, y: [isNumber(metrics.total_value) ? metrics.total_value : null] });
    this.#add(this.#drawdowns, { ...point, y: [isNumber(metrics.drawdown) ? -metrics.drawdown : null] });
    this.#redraw();
  }

  #startOver() {
    this.#values = [];
    this.#drawdowns = [];
    this.#day = 0;
  }

  #add(points, point) {
    points.push(point);
    if (points.length > MOST_DAYS) points.shift();
  }

  #draw() {
    const last = this.#last;
    setFigures(this.#element, {
      total_value: money(last.total_value),
      daily_return: percent(last.daily_return, 2, true),
      date: last.date ? String(last.date) : "–",
      drawdown: percent(last.drawdown),
      value_at_risk: percent(last.value_at_risk),
      volatility: isNumber(last.volatility) ? `${fixed(last.volatility, 1)}%` : "–",
      volatility_source: gauge(last.volatility_source),
      hedge_ratio: percent(last.hedge_ratio, 0),
      cash: money(last.cash),
      index_close: fixed(last.index_close, 2),
      positions_count: count(last.positions_count),
    });
    const change = find("[data-figure=daily_return]", this.#element);
    change.dataset.direction = last.daily_return > 0 ? "up" : last.daily_return < 0 ? "down" : "flat";
    this.#value.show(this.#values);
    this.#drawdown.show(this.#drawdowns);
  }
}

function gauge(source) {
  if (source === "vix") return "VIX";
  return source === "realised" ? words(source) : "";
}
