// The accounts of the server: searched and cut into pages by the server; made and changed here.

import { count } from "../format.js";
import { h, onBeforeUnmount, onMounted, reactive, ref } from "../vendor/vue.js";
import { ask } from "./ask.js";
import { askFor } from "./dialog.js";
import { pager } from "./pager.js";
import { useRows } from "./rows.js";

const PATH = "/api/v1/admin/users";
const PAGE = 50;
const PAUSE = 150; // ms without a key before it is searched
const LETTERS = 16; // of a password that is made here

const PATTERNS = { subscribe: "May read", publish: "May publish to", presence: "May see who is on" };
const ENDS = "To set a password, or to refuse the login, ends the user's sessions and streams at once.";

/** What the page shows, and the requests behind it. */
function useUsers(session) {
  const query = reactive({ search: "", offset: 0 });
  const found = ref({ total: 0, users: [] });
  const said = ref("");
  const problem = ref("");
  let asking = null;
  let timer = 0;

  async function load() {
    asking?.abort();
    const mine = (asking = new AbortController());
    try {
      const options = { query: { ...query, limit: PAGE }, signal: mine.signal };
      const answer = await session.request(PATH, options);
      if (mine.signal.aborted) return;
      found.value = { ...answer, for: query.search };
      problem.value = "";
      if (query.offset && query.offset >= answer.total) turn(Math.max(0, Math.ceil(answer.total / PAGE) - 1));
    } catch (error) {
      if (!mine.signal.aborted) problem.value = error.message;
    }
  }
  function search(text) {
    Object.assign(query, { search: text, offset: 0 });
    clearTimeout(timer);
    timer = setTimeout(load, PAUSE);
  }
  function turn(page) {
    query.offset = page * PAGE;
    load();
  }
  async function add() {
    const fields = [
      { name: "name", label: "Name", more: { required: "", maxlength: "64", autocapitalize: "none" } },
      { ...passwordField("Password", newPassword()), more: { required: "", ...PASSWORD } },
      ...grantFields({}),
    ];
    await askFor("Add a user", fields, "Add", async ({ name, password, ...granted }) => {
      done("Added", await session.request(PATH, { body: { name, password, grants: grantsOf(granted) } }));
    });
  }
  async function change(user) {
    const own = user.name === session.username;
    const fields = [
      ...grantFields(user.grants),
      { ...passwordField("New password", ""), hint: "Empty: the password stays as it is.", more: PASSWORD },
      { name: "disabled", label: "Refuse the login", value: user.disabled },
    ];
    const hint = own ? `This is your own account. ${ENDS} You would be logged out too.` : ENDS;
    const send = async ({ password, disabled, ...granted }) => {
      // Only what was changed here: another administrator may have changed the rest meanwhile.
      const body = {};
      if (disabled !== user.disabled) body.disabled = disabled;
      if (password) body.password = password;
      if (isOther(grantsOf(granted), user.grants)) body.grants = grantsOf(granted);
      if (!Object.keys(body).length) throw new Error("Nothing was changed.");
      done("Changed", await confirmed(session, user.name, body));
    };
    await askFor(`Change ${user.name}`, fields, "Save", send, hint);
  }
  function done(what, { name, uncovered }) {
    const none = uncovered.length ? ` The settings have no channel that ${uncovered.join(", ")} covers.` : "";
    said.value = `${what}: ${name}.${none}`;
    load();
  }
  onMounted(load);
  onBeforeUnmount(() => {
    asking?.abort();
    clearTimeout(timer);
  });
  return { query, found, said, problem, search, turn, add, change };
}

/** Sends a change; what would take administration from the own account is asked about first. */
async function confirmed(session, name, body) {
  const path = `${PATH}/${encodeURIComponent(name)}`;
  try {
    return await session.request(path, { method: "PATCH", body });
  } catch (error) {
    if (error.code !== "own_account") throw error;
  }
  const sentence = "This is your own account: you could not administer this server any more.";
  const answer = await ask("Take administration from yourself?", sentence, "Do it");
  if (answer === null) throw new Error("Nothing was changed.");
  return session.request(path, { method: "PATCH", body: { ...body, own_account: true } });
}

const PASSWORD = { minlength: "8", maxlength: "1024", autocomplete: "new-password", class: "code" };

/** A field for a password that is to be passed on to its user, so it is shown. */
function passwordField(label, value) {
  return { name: "password", label, value, hint: "8 characters at least. Give it to the user; it is not shown again." };
}

function newPassword() {
  const bytes = crypto.getRandomValues(new Uint8Array(LETTERS * 0.75));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_");
}

function grantFields(grants) {
  const fields = Object.entries(PATTERNS).map(([name, label]) => ({
    ...{ name, label, value: (grants[name] ?? []).join(", ") },
    more: { class: "code", placeholder: "none" },
  }));
  fields[0].hint = "Channels or patterns, with commas between them, such as alerts, training.*";
  return [...fields, { name: "admin", label: "Administrator", value: grants.admin ?? false }];
}

function grantsOf({ admin, ...patterns }) {
  const split = (text) => text.split(/[\s,]+/).filter(Boolean);
  return { admin, ...Object.fromEntries(Object.entries(patterns).map(([name, text]) => [name, split(text)])) };
}

function isOther(grants, before) {
  return Object.entries(grants).some(([name, value]) => String(value) !== String(before[name]));
}

/** The page. */
export const Users = {
  props: { session: { type: Object, required: true } },
  setup({ session }) {
    const table = useUsers(session);
    const rows = useRows();
    return () =>
      h("section", { class: "panel", "aria-labelledby": "users-title" }, [
        h("header", [
          h("h2", { id: "users-title" }, "Users"),
          h("span", { class: "aside", role: "status", "data-found": table.found.value.for ?? "" }, summary(table)),
        ]),
        bar(table),
        h("p", { role: "status", class: "aside", "data-said": "" }, table.said.value),
        h("p", { role: "alert", class: "problem" }, table.problem.value),
        h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of users" }, [
          h("table", { class: "rows" }, [
            h(
              "thead",
              h("tr", [
                ...["Name", "Login", "Role", ...Object.values(PATTERNS)].map((title) => h("th", { scope: "col" }, title)),
                h("td", { class: "actions" }),
              ]),
            ),
            h(
              "tbody",
              { ...rows },
              table.found.value.users.map((user) => rowOf(user, table)),
            ),
          ]),
        ]),
        pager("Pages of users", table.query.offset / PAGE, Math.ceil(table.found.value.total / PAGE), table.turn),
      ]);
  },
};

function summary({ query, found }) {
  const { total } = found.value;
  return query.search ? `${count(total)} found` : `${count(total)} in all`;
}

function bar({ query, search, add }) {
  return h("form", { class: "fields", role: "search", onSubmit: (event) => event.preventDefault() }, [
    h("label", { class: "wide" }, [
      "Search by name",
      h("input", {
        ...{ type: "search", name: "search-users", maxlength: 255, autocomplete: "off", spellcheck: false },
        value: query.search,
        onInput: (event) => search(event.target.value),
      }),
    ]),
    h("button", { type: "button", onClick: add }, "Add a user…"),
  ]);
}

function rowOf(user, { change }) {
  const patterns = Object.keys(PATTERNS).map((name) => h("td", user.grants[name]?.join(", ") || "–"));
  return h("tr", { key: user.name, "data-user": user.name }, [
    h("th", { scope: "row" }, user.name),
    h("td", { class: user.disabled ? "problem" : undefined }, user.disabled ? "refused" : "allowed"),
    h("td", user.grants.admin ? "admin" : "–"),
    ...patterns,
    h("td", { class: "actions" }, [
      h(
        "button",
        { type: "button", class: "quiet small", "aria-label": `Change ${user.name}`, onClick: () => change(user) },
        "Change…",
      ),
    ]),
  ]);
}
