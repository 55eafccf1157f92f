// The buttons below a table that the server cuts into pages.

import { count } from "../format.js";
import { h } from "../vendor/vue.js";
import { HINT } from "./rows.js";

/**
 * @param {string} label
 * @param {number} page that is shown, from 0 on
 * @param {number} pages how many there are; none counts as one
 * @param {(page: number) => void} turn
 */
export function pager(label, page, pages, turn) {
  const last = Math.max(1, pages) - 1;
  const go = (text, to) =>
    h(
      "button",
      { type: "button", class: "quiet small", disabled: to < 0 || to > last || to === page, onClick: () => turn(to) },
      text,
    );
  return h("nav", { class: "pager", "aria-label": label }, [
    ...[go("First", 0), go("Previous", page - 1)],
    h("span", `Page ${count(page + 1)} of ${count(last + 1)}`),
    ...[go("Next", page + 1), go("Last", last)],
    h("span", { class: "aside hint" }, HINT),
  ]);
}
