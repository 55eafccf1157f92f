// What the panels of training and backtest have in common: state, progress bar, message.

import { find, setText } from "../dom.js";
import { fixed, isNumber } from "../format.js";

const STATES = ["started", "running", "completed", "failed"];

/**
 * Shows how far a run is.
 * @param {HTMLElement} element the panel
 * @param {import("./runs.js").Run | undefined} run
 */
export function showProgress(element, run) {
  const last = run?.last ?? {};
  const progress = isNumber(last.progress) ? Math.min(100, Math.max(0, last.progress)) : 0;
  const state = STATES.includes(last.status) ? last.status : "";
  const pill = find("[data-state]", element);
  pill.dataset.state = state;
  pill.hidden = !state;
  setText(pill, state);
  find("progress", element).value = progress;
  setText(find("[data-percent]", element), run ? `${fixed(progress, 0)}%` : "–");
  setText(find("[data-run]", element), run ? run.id : "");
  setText(find("[data-message]", element), run ? String(last.message ?? "") : "No run yet");
}
