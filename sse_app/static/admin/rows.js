// The buttons in the rows of a table are one stop for the Tab key, and arrow keys move among them: with a stop for each
// it would take a hundred to come past the table (WAI-ARIA Authoring Practices, "roving tabindex").

import { onBeforeUnmount, onMounted, onUpdated, ref } from "../vendor/vue.js";

const STEPS = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

/** What a visible line beside such a table says. */
export const HINT = "Arrow keys move from row to row.";

/** To be called in a component's setup: what its `tbody` is to be given. */
export function useRows() {
  const body = ref(null);
  let current = null; // the button that Tab leads to
  let at = 0; // the number of its row, also when that has gone
  let here = false; // whether the focus was in the table last, or in a dialog that was opened from there

  const rows = () =>
    [...(body.value?.rows ?? [])].map((row) => [...row.querySelectorAll("button")]).filter((all) => all.length);

  function settle() {
    const all = rows();
    if (!current?.isConnected) {
      current = all[Math.min(at, all.length - 1)]?.[0] ?? null;
      // The row that had the focus has gone: the one in its place gets it, or the next Tab would begin at the top.
      if (here && document.activeElement === document.body) current?.focus({ preventScroll: true });
    }
    for (const button of all.flat()) button.tabIndex = button === current ? 0 : -1;
  }

  function onFocusin({ target }) {
    const inside = body.value?.contains(target);
    here = inside || (here && target.closest("dialog") !== null);
    if (!inside || target.tagName !== "BUTTON") return;
    current = target;
    at = rows().findIndex((buttons) => buttons.includes(target));
    settle();
  }

  function onKeydown(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName !== "BUTTON") return;
    const all = rows();
    const row = all.findIndex((buttons) => buttons.includes(event.target));
    const column = all[row].indexOf(event.target);
    const to = { ArrowLeft: all[row][column - 1], ArrowRight: all[row][column + 1] };
    if (event.key in STEPS) {
      const buttons = all[Math.max(0, Math.min(all.length - 1, row + STEPS[event.key]))];
      to[event.key] = buttons[Math.min(column, buttons.length - 1)];
    }
    if (!(event.key in to)) return;
    event.preventDefault();
    to[event.key]?.focus();
  }

  onMounted(() => {
    document.addEventListener("focusin", onFocusin);
    settle();
  });
  onUpdated(settle);
  onBeforeUnmount(() => document.removeEventListener("focusin", onFocusin));
  return { ref: body, onKeydown };
}
