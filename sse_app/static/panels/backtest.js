// The backtest panel: how far it is, its figures so far, and the curve of its total return.

import { LineChart } from "../chart.js";
import { find, oncePerFrame, setFigures } from "../dom.js";
import { axisPercent, fixed, isNumber, percent } from "../format.js";
import { showProgress } from "./progress.js";
import { Runs } from "./runs.js";

/** @implements {import("../feed.js").Panel} */
export class BacktestPanel {
  #element;
  #equity;
  #runs = new Runs();
  #redraw = oncePerFrame(() => this.#draw());

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    this.#equity = new LineChart(find("[data-chart=equity]", element), {
      label: "Total return of the backtest",
      lines: [{ name: "equity", area: true }],
      formatTick: axisPercent,
      formatValue: (value) => percent(value, 1, true),
      xRange: [0, 100],
      formatX: (value) => `${value}%`,
      xSpace: 44,
      yInclude: [0],
    });
    this.clear();
  }

  /** Forgets everything. */
  clear() {
    this.#runs.clear();
    this.#redraw();
  }

  /** @param {import("../feed.js").Received} event */
  apply({ event, data }) {
    if (event !== "backtest_progress" || !isNumber(data.progress)) return;
    const total = data.results?.total_return;
    const label = data.current_date ? String(data.current_date) : `${fixed(data.progress, 0)}%`;
    this.#runs.add(data.backtest_id, data, [{ x: data.progress, label, y: [isNumber(total) ? total : null] }]);
    this.#redraw();
  }

  #draw() {
    const run = this.#runs.shown;
    showProgress(this.#element, run);
    const results = run?.last.results ?? {};
    setFigures(this.#element, {
      total_return: percent(results.total_return, 1, true),
      sharpe_ratio: fixed(results.sharpe_ratio, 2),
      max_drawdown: percent(results.max_drawdown, 1),
    });
    this.#equity.show(run?.curves[0] ?? []);
  }
}
