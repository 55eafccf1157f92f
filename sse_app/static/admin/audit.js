// The audit trail, the newest first.

import { clock, words } from "../format.js";
import { h, onMounted, ref, watch } from "../vendor/vue.js";

const LIMIT = 25;
const COLUMNS = { at: "When", action: "What", subject: "Who", address: "From", target: "About", detail: "Detail" };
const OF_SESSIONS = ["login", "refresh", "refresh_refused", "refresh_reused", "logout"];
const OF_USERS = ["login_refused", "kick", "password_changed", "grants_changed"];
const SCOPES = { subject: "user", session: "session", token: "token" };

/** The table. */
export const Audit = {
  props: { session: { type: Object, required: true }, done: { type: Number, required: true } },
  setup(props) {
    const entries = ref([]);
    const more = ref(false);
    const problem = ref("");
    let asked = 0;
    async function load(before) {
      const turn = ++asked;
      problem.value = "";
      try {
        const found = (await props.session.request("/api/v1/admin/audit", { query: { limit: LIMIT, before } })).entries;
        if (turn !== asked) return; // a second click has asked for the same, or for all anew
        entries.value = before ? [...entries.value, ...found] : found;
        more.value = found.length === LIMIT;
      } catch (error) {
        if (turn === asked) problem.value = error.message;
      }
    }
    onMounted(() => load());
    watch(
      () => props.done,
      () => load(),
    );
    return () =>
      h("section", { class: "panel", "aria-labelledby": "audit-title" }, [
        h("header", [
          h("h2", { id: "audit-title" }, "Audit trail"),
          h("button", { type: "button", class: "quiet small aside", onClick: () => load() }, "Refresh"),
        ]),
        h("p", { role: "alert", class: "problem" }, problem.value),
        h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Entries of the audit trail" }, [
          h("table", { class: "rows" }, [
            h(
              "thead",
              h(
                "tr",
                Object.values(COLUMNS).map((title) => h("th", { scope: "col" }, title)),
              ),
            ),
            h("tbody", entries.value.map(row)),
          ]),
        ]),
        more.value &&
          h(
            "p",
            h(
              "button",
              {
                type: "button",
                class: "quiet small",
                onClick: () => load(entries.value[entries.value.length - 1].number),
              },
              "Older",
            ),
          ),
      ]);
  },
};

function row(entry) {
  const text = { ...entry, at: clock(new Date(entry.at)), action: words(entry.action), target: about(entry) };
  if (entry.action === "revocation") text.detail = ""; // it says of what kind the target is
  return h(
    "tr",
    { key: entry.number },
    Object.keys(COLUMNS).map((name) => h("td", text[name])),
  );
}

/** Says what an entry is about, for its target alone may be the id of a session, a user or a key. */
function about({ action, target, detail }) {
  if (action === "revocation" && detail === "all") return "all tokens";
  if (action === "kick" && !target) return "a stream without a token";
  if (!target) return "";
  if (action === "revocation") return `${SCOPES[detail] ?? ""} ${target}`.trim();
  if (OF_SESSIONS.includes(action)) return `session ${target}`;
  if (OF_USERS.includes(action) || action.startsWith("user_")) return `user ${target}`;
  return action.startsWith("key_") ? `key ${target}` : target;
}
