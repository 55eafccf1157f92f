// The training panel: how far the fit is, and its loss and accuracy on held-out days, epoch by epoch.

import { LineChart } from "../chart.js";
import { find, oncePerFrame, setFigures } from "../dom.js";
import { axisNumber, axisPercent, fixed, isNumber, percent } from "../format.js";
import { showProgress } from "./progress.js";
import { Runs } from "./runs.js";

const RUN = { xRange: [0, 100], formatX: (value) => `${value}%`, xSpace: 44 };

/** @implements {import("../feed.js").Panel} */
export class TrainingPanel {
  #element;
  #loss;
  #accuracy;
  #runs = new Runs();
  #redraw = oncePerFrame(() => this.#draw());

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#element = element;
    this.#loss = new LineChart(find("[data-chart=loss]", element), {
      label: "Loss on held-out days",
      lines: [{ name: "loss" }],
      formatTick: axisNumber,
      formatValue: (value) => fixed(value, 4),
      ...RUN,
    });
    this.#accuracy = new LineChart(find("[data-chart=accuracy]", element), {
      label: "Accuracy on held-out days",
      lines: [{ name: "accuracy" }],
      formatTick: axisPercent,
      formatValue: (value) => percent(value),
      ...RUN,
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
    if (event !== "training_progress" || !isNumber(data.progress)) return;
    const { loss, accuracy } = data.metrics ?? {};
    const point = { x: data.progress, label: `${fixed(data.progress, 0)}%` };
    this.#runs.add(data.task_id, data, [
      { ...point, y: [isNumber(loss) ? loss : null] },
      { ...point, y: [isNumber(accuracy) ? accuracy : null] },
    ]);
    this.#redraw();
  }

  #draw() {
    const run = this.#runs.shown;
    showProgress(this.#element, run);
    const metrics = run?.last.metrics ?? {};
    setFigures(this.#element, { loss: fixed(metrics.loss, 4), accuracy: percent(metrics.accuracy, 1) });
    this.#loss.show(run?.curves[0] ?? []);
    this.#accuracy.show(run?.curves[1] ?? []);
  }
}
