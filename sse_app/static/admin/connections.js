// The table of live connections: searched, sorted and cut into pages by the server; kicking and revoking.

import { bytes, count, duration } from "../format.js";
import { h, onBeforeUnmount, onMounted, reactive, ref, watch } from "../vendor/vue.js";
import { ask } from "./ask.js";
import { nodesOf, silent } from "./live_figures.js";
import { pager } from "./pager.js";
import { choice, revoke } from "./revoke.js";
import { useRows } from "./rows.js";

const PAGE = 50;
const PAUSE = 80; // ms without a key before it is searched
const AGAIN = 5000; // ms after which the table is brought up to date

const COLUMNS = [
  ["subject", "User", (row) => row.subject ?? "no token"],
  ["client_id", "Client id", (row) => row.client_id, "code"],
  ["channels", "Channels", (row) => row.channels.join(", ")],
  ["address", "Address", (row) => row.address],
  ["opened_at", "Age", (row) => duration(row.open_seconds)],
  ["last_event_id", "Last id", (row) => row.last_event_id, "code"],
  ["lag_events", "Lag, events", (row) => count(row.lag_events), "number"],
  ["backlog_bytes", "Lag, bytes", (row) => bytes(row.backlog_bytes), "number"],
  ["adopted", "Adopted", (row) => (row.adopted ? "yes" : "no")],
];
const FIELDS = {
  "": "anywhere",
  subject: "in user",
  client_id: "in client id",
  channels: "in channels",
  address: "in address",
};
const columnOf = ({ noun, name }) => [noun, name, (row) => row[noun], noun === "worker" ? "number" : ""];
const columnsOf = (found) => (nodesOf(found) ? [...COLUMNS, columnOf(nodesOf(found))] : COLUMNS);
const fieldsOf = (found) => (nodesOf(found) ? { ...FIELDS, [nodesOf(found).noun]: nodesOf(found).noun } : FIELDS);

/** What the panel shows, and the requests behind it. */
function useConnections(props, emit) {
  const query = reactive({ search: "", field: "", sort: "connection", order: "asc", offset: 0, keep: true });
  const found = ref({ total: 0, connections: [] });
  const said = ref("");
  const problem = ref("");
  let asking = null;
  let timer = 0;
  let next = 0;

  async function load() {
    asking?.abort();
    clearTimeout(next);
    const mine = (asking = new AbortController());
    const { keep, ...asked } = query;
    try {
      const options = { query: { ...asked, limit: PAGE }, signal: mine.signal };
      const answer = await props.session.request("/api/v1/admin/connections", options);
      if (mine.signal.aborted) return;
      found.value = { ...answer, for: query.search };
      problem.value = "";
      if (query.offset && query.offset >= answer.total) turn(Math.max(0, Math.ceil(answer.total / PAGE) - 1));
    } catch (error) {
      if (mine.signal.aborted) return;
      problem.value = error.message;
    }
    if (keep) next = setTimeout(() => (document.hidden ? (next = setTimeout(load, AGAIN)) : load()), AGAIN);
  }
  function search(changes) {
    Object.assign(query, changes, { offset: 0 });
    clearTimeout(timer);
    timer = setTimeout(load, PAUSE);
  }
  function sort(name) {
    const order = query.sort === name && query.order === "asc" ? "desc" : "asc";
    Object.assign(query, { sort: name, order, offset: 0 });
    load();
  }
  function turn(page) {
    query.offset = page * PAGE;
    load();
  }
  async function act(doing) {
    try {
      said.value = (await doing()) || said.value;
      emit("done");
    } catch (error) {
      problem.value = error.message;
    }
  }
  const kick = (row) =>
    act(async () => {
      const path = `/api/v1/admin/connections/${row.connection}/kick`;
      const { streams } = await props.session.request(path);
      const ending = streams === 1 ? "One stream ends" : `${count(streams)} streams end, which share a token`;
      const sentence =
        `${ending}: ${nameOf(row)}. ` +
        (row.token_id === null
          ? "Its client is asked to come back in 5 minutes; without a token it cannot be kept from coming earlier."
          : "Their login gets no other stream for 5 minutes; who has a password can log in again.");
      if ((await ask("Kick this connection?", sentence, "Kick")) === null) return "";
      const { kicked } = await props.session.request(path, { body: {} });
      return `Kicked: ${kicked} ${kicked === 1 ? "stream" : "streams"} ended.`;
    });
  const revokeOf = (row) =>
    act(() => revoke(props.session, [choice("subject", row.subject), choice("session", row.session)]));
  onMounted(load);
  onBeforeUnmount(() => {
    asking?.abort();
    [timer, next].forEach((each) => clearTimeout(each));
  });
  watch(() => [props.done, query.keep], load);
  return { query, found, said, problem, search, sort, turn, kick, revokeOf, load };
}

/** What is said of a connection: a public channel takes no token, which would say whose it is. */
function nameOf(row) {
  return row.token_id === null ? `${row.client_id} without a token` : `${row.client_id} of ${row.subject}`;
}

/** The panel. */
export const Connections = {
  props: { session: { type: Object, required: true }, done: { type: Number, required: true } },
  emits: ["done"],
  setup(props, { emit }) {
    const table = useConnections(props, emit);
    const rows = useRows();
    return () =>
      h("section", { class: "panel", "aria-labelledby": "connections-title" }, [
        h("header", [
          h("h2", { id: "connections-title" }, "Connections"),
          h("span", { class: "aside", role: "status", "data-found": table.found.value.for ?? "" }, summary(table)),
        ]),
        bar(table),
        h("p", { role: "status", class: "aside", "data-said": "" }, table.said.value),
        h("p", { role: "alert", class: "problem" }, table.problem.value || gap(table.found.value)),
        h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of connections" }, [
          h("table", { class: "rows" }, [
            h("thead", h("tr", [...columnsOf(table.found.value).map(heading, table), h("td", { class: "actions" })])),
            h("tbody", { ...rows }, table.found.value.connections.map(rowOf, table)),
          ]),
        ]),
        pager("Pages of connections", table.query.offset / PAGE, Math.ceil(table.found.value.total / PAGE), table.turn),
      ]);
  },
};

function summary({ query, found }) {
  const { total } = found.value;
  return query.search ? `${count(total)} found` : `${count(total)} open`;
}

/** What the table does not show. */
function gap(found) {
  return silent(found) ? `${silent(found)}: what is connected there is not listed.` : "";
}

function bar({ query, found, search, load }) {
  return h("form", { class: "fields", role: "search", onSubmit: (event) => (event.preventDefault(), load()) }, [
    h("label", { class: "wide" }, [
      "Search",
      h("input", {
        type: "search",
        name: "search",
        maxlength: 255,
        value: query.search,
        onInput: (event) => search({ search: event.target.value }),
        autocomplete: "off",
        spellcheck: false,
      }),
    ]),
    h("label", [
      "Where",
      h(
        "select",
        { name: "field", value: query.field, onChange: (event) => search({ field: event.target.value }) },
        Object.entries(fieldsOf(found.value)).map(([value, text]) => h("option", { value }, text)),
      ),
    ]),
    h("label", { class: "choice" }, [
      h("input", { type: "checkbox", checked: query.keep, onChange: (event) => (query.keep = event.target.checked) }),
      "Keep up to date",
    ]),
    h("button", { type: "submit", class: "quiet" }, "Refresh"),
  ]);
}

function heading([name, title, , style]) {
  const { query, sort } = this;
  const sorted = query.sort === name;
  return h(
    "th",
    {
      key: name,
      scope: "col",
      class: style === "number" ? style : undefined,
      "aria-sort": sorted ? (query.order === "asc" ? "ascending" : "descending") : undefined,
    },
    [
      h("button", { type: "button", class: "sort", onClick: () => sort(name) }, [
        title,
        h("span", { "aria-hidden": "true" }, sorted ? (query.order === "asc" ? " ↑" : " ↓") : ""),
      ]),
    ],
  );
}

function rowOf(row) {
  const label = nameOf(row);
  return h("tr", { key: row.connection, "data-connection": row.connection }, [
    ...columnsOf(this.found.value).map(([name, , read, style]) => h("td", { key: name, class: style }, read(row))),
    h("td", { class: "actions" }, [
      h(
        "button",
        { type: "button", class: "quiet small", "aria-label": `Kick ${label}`, onClick: () => this.kick(row) },
        "Kick",
      ),
      row.token_id !== null &&
        h(
          "button",
          { type: "button", class: "quiet small", "aria-label": `Revoke ${label}`, onClick: () => this.revokeOf(row) },
          "Revoke…",
        ),
    ]),
  ]);
}
