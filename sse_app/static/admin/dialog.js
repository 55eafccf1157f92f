// A form in a dialog, which stays open until what it asks for is done: the browser's own, so the keyboard and screen
// readers find their way in and out.

import { make } from "../dom.js";

/**
 * @typedef {object} Field
 * @property {string} name
 * @property {string} label
 * @property {string | boolean} [value] a boolean makes a checkbox
 * @property {string} [hint]
 * @property {Record<string, string>} [more] further attributes
 */

/**
 * Shows a form and calls `submit` with its values, which may throw: then the form says why, and stays.
 * @param {string} title
 * @param {Field[]} fields
 * @param {string} action what the button says
 * @param {(values: Record<string, string | boolean>) => Promise<unknown>} submit
 * @param {string} [hint] a sentence above the fields
 * @returns {Promise<boolean>} whether it was done
 */
export function askFor(title, fields, action, submit, hint = "") {
  const dialog = document.createElement("dialog");
  dialog.className = "form";
  const form = document.createElement("form");
  form.className = "fields";
  const heading = make("h2", "", title);
  heading.id = "form-title";
  dialog.setAttribute("aria-labelledby", heading.id);
  const problem = make("p", "problem whole");
  problem.setAttribute("role", "alert");
  const [cancel, done] = [button("Cancel", "button", "quiet"), button(action, "submit", "")];
  const buttons = make("p", "buttons whole");
  buttons.append(cancel, done);
  const inputs = fields.map(inputOf);
  form.append(...(hint ? [make("p", "hint whole", hint)] : []), ...inputs.map(({ rows }) => rows).flat(), problem, buttons);
  dialog.append(heading, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    let finished = false;
    cancel.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(finished);
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      done.disabled = true;
      problem.textContent = "";
      try {
        await submit(Object.fromEntries(inputs.map(({ name, read }) => [name, read()])));
        finished = true;
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
      } finally {
        done.disabled = false;
      }
    });
    dialog.showModal();
  });
}

function button(text, type, className) {
  const made = make("button", className, text);
  made.type = type;
  return made;
}

function inputOf({ name, label, value = "", hint = "", more = {} }) {
  const isChoice = typeof value === "boolean";
  const row = make("label", isChoice ? "whole choice" : "whole");
  const input = document.createElement("input");
  Object.assign(input, isChoice ? { type: "checkbox", checked: value } : { value, autocomplete: "off", spellcheck: false });
  for (const [each, text] of Object.entries({ name, ...more })) input.setAttribute(each, text);
  row.append(...(isChoice ? [input, label] : [label, input]));
  const rows = [row];
  if (hint) {
    const line = make("p", "aside whole", hint);
    line.id = `hint-${name}`;
    input.setAttribute("aria-describedby", line.id);
    rows.push(line);
  }
  return { name, rows, read: () => (isChoice ? input.checked : input.value) };
}
