// Revoking a user's or a session's tokens: what can be revoked, asking first, and a form for those who know the name.

import { h, ref } from "../vendor/vue.js";
import { ask } from "./ask.js";

const WHAT = { subject: "user", session: "session" };

/** Revokes after asking; returns a sentence about it, or nothing where it was thought better of. */
export async function revoke(session, choices) {
  const sentence =
    "Their tokens are of no more use and their streams end at once. Who has a password can log in again.";
  const chosen = await ask("Revoke tokens?", sentence, "Revoke", choices);
  if (chosen === null) return "";
  const [scope, ...value] = chosen.split(" ");
  const answer = await session.request("/api/v1/admin/revocations", { body: { [scope]: value.join(" ") } });
  return `Revoked: ${answer.streams} ${answer.streams === 1 ? "stream" : "streams"} ended.`;
}

/** One thing that can be revoked, for `revoke`. */
export function choice(scope, value) {
  return {
    value: `${scope} ${value}`,
    label: `${WHAT[scope] === "user" ? "Everything of the user" : "Only the session"} ${value}`,
  };
}

/** The form. */
export const Revoke = {
  props: { session: { type: Object, required: true } },
  emits: ["done"],
  setup({ session }, { emit }) {
    const scope = ref("subject");
    const value = ref("");
    const said = ref("");
    const problem = ref("");
    async function submit(event) {
      event.preventDefault();
      said.value = problem.value = "";
      try {
        said.value = await revoke(session, [choice(scope.value, value.value)]);
        if (said.value) emit("done");
      } catch (error) {
        problem.value = error.message;
      }
    }
    return () =>
      h("section", { class: "panel", "aria-labelledby": "revoke-title" }, [
        h("header", h("h2", { id: "revoke-title" }, "Revoke")),
        h("form", { class: "fields", onSubmit: submit }, [
          h("label", [
            "What",
            h("select", { value: scope.value, onChange: (event) => (scope.value = event.target.value) }, [
              h("option", { value: "subject" }, "a user"),
              h("option", { value: "session" }, "a session"),
            ]),
          ]),
          h("label", { class: "wide" }, [
            scope.value === "subject" ? "User" : "Session id",
            h("input", {
              required: true,
              value: value.value,
              onInput: (event) => (value.value = event.target.value),
              autocomplete: "off",
              spellcheck: false,
            }),
          ]),
          h("button", { type: "submit", class: "danger" }, "Revoke…"),
        ]),
        h("p", { role: "status", class: "aside" }, said.value),
        h("p", { role: "alert", class: "problem" }, problem.value),
      ]);
  },
};
