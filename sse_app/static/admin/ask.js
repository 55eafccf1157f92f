// Asks before something is done that cannot be undone: the browser's own dialog, so the keyboard and screen readers
// find their way in and out.

import { make } from "../dom.js";

/**
 * @param {string} title
 * @param {string} sentence
 * @param {string} action what the button says
 * @param {{value: string, label: string}[]} [choices] one of them is to be chosen
 * @returns {Promise<string | null>} the choice (or the action where there are none), or null: it was thought better of
 */
export function ask(title, sentence, action, choices = []) {
  const dialog = document.createElement("dialog");
  const form = document.createElement("form");
  form.method = "dialog";
  const heading = make("h2", "", title);
  heading.id = "ask-title";
  dialog.setAttribute("aria-labelledby", heading.id);
  const buttons = make("p", "buttons");
  buttons.append(button("Cancel", "", "quiet"), button(action, "yes", "danger"));
  form.append(heading, make("p", "", sentence), ...choices.map(choice), buttons);
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const chosen = new FormData(form).get("choice") ?? action;
      resolve(dialog.returnValue === "yes" ? chosen : null);
      dialog.remove();
    });
  });
}

function button(text, value, className) {
  const made = make("button", className, text);
  made.value = value;
  return made;
}

function choice({ value, label }, number) {
  const row = make("label", "choice");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "choice", value, checked: number === 0 });
  row.append(radio, label);
  return row;
}
