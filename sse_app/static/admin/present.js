// Who is on a channel, over all nodes, as it changes.

import { clock, count } from "../format.js";
import { h, onBeforeUnmount, ref, shallowRef, watch } from "../vendor/vue.js";
import { silent } from "./live_figures.js";

const AGAIN = 1000; // ms between two looks
const MOST = 200; // users that are listed

/** What the panel shows, and the requests behind it. */
function useChannel(session) {
  const name = ref(""); // as it is typed
  const shown = ref(""); // the channel that is looked at
  const found = shallowRef(null);
  const problem = ref("");
  let asking = null;
  let next = 0;

  async function look() {
    asking?.abort();
    clearTimeout(next);
    const mine = (asking = new AbortController());
    const path = `/api/v1/admin/channels/${encodeURIComponent(shown.value)}/presence`;
    try {
      if (!document.hidden) {
        const answer = await session.request(path, { signal: mine.signal });
        if (mine.signal.aborted) return;
        found.value = answer;
        problem.value = "";
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      problem.value = error.message;
      if (error.status >= 400 && error.status < 500) return stop(); // asking again would be of no use
    }
    next = setTimeout(look, AGAIN);
  }
  function stop() {
    asking?.abort();
    clearTimeout(next);
    shown.value = "";
    found.value = null;
  }
  function show(channel) {
    stop();
    problem.value = "";
    name.value = shown.value = channel.trim();
    if (shown.value) look();
  }
  onBeforeUnmount(stop);
  return { name, shown, found, problem, show, stop };
}

/** The panel. `wanted` is a channel to show, with a number that changes each time that it is asked for. */
export const Present = {
  props: {
    session: { type: Object, required: true },
    channels: { type: Array, required: true },
    wanted: { type: Object, required: true },
  },
  setup(props) {
    const channel = useChannel(props.session);
    const panel = ref(null);
    watch(
      () => props.wanted,
      ({ name }) => {
        channel.show(name);
        panel.value.scrollIntoView({ block: "nearest" });
        panel.value.querySelector("input").focus({ preventScroll: true });
      },
    );
    return () =>
      h("section", { class: "panel", "aria-labelledby": "present-title", ref: panel }, [
        h("header", [
          h("h2", { id: "present-title" }, "Who is on a channel"),
          h("span", { class: "aside", role: "status", "data-present": channel.shown.value }, summary(channel)),
        ]),
        form(channel, props.channels),
        h("p", { role: "alert", class: "problem" }, channel.problem.value || gap(channel.found.value)),
        channel.found.value && table(channel.found.value),
      ]);
  },
};

function form({ name, shown, show, stop }, channels) {
  const submit = (event) => {
    event.preventDefault();
    show(name.value);
  };
  return h("form", { class: "fields", onSubmit: submit }, [
    h("label", { class: "wide" }, [
      "Channel",
      h("input", {
        ...{ name: "channel", required: true, list: "present-channels", autocomplete: "off", spellcheck: false },
        value: name.value,
        onInput: (event) => (name.value = event.target.value),
      }),
    ]),
    h(
      "datalist",
      { id: "present-channels" },
      channels.map((each) => h("option", { value: each, key: each })),
    ),
    h("button", { type: "submit" }, "Show"),
    h("button", { type: "button", class: "quiet", disabled: !shown.value, onClick: stop }, "Stop"),
  ]);
}

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function summary({ shown, found }) {
  if (!shown.value) return "";
  if (!found.value) return `${shown.value}: asking`;
  const { users, anonymous } = found.value;
  const streams = users.reduce((sum, user) => sum + user.streams, anonymous);
  const without = anonymous ? `, ${count(anonymous)} of them without a token` : "";
  return `${shown.value}: ${plural(users.length, "user")}, ${plural(streams, "stream")}${without}`;
}

function gap(found) {
  return found && silent(found) ? `${silent(found)}: who is connected there is not listed.` : "";
}

function table({ users }) {
  const more = users.length - MOST;
  return [
    h("div", { class: "scroll present", tabindex: 0, role: "region", "aria-label": "Users on the channel" }, [
      h("table", { class: "rows" }, [
        h(
          "thead",
          h("tr", [
            h("th", { scope: "col" }, "User"),
            h("th", { scope: "col", class: "number" }, "Streams"),
            h("th", { scope: "col" }, "Since"),
          ]),
        ),
        h(
          "tbody",
          users.slice(0, MOST).map(({ sub, streams, since }) =>
            h("tr", { key: sub, "data-user": sub }, [
              h("td", sub),
              h("td", { class: "number" }, count(streams)),
              h("td", clock(new Date(since))),
            ]),
          ),
        ),
      ]),
    ]),
    more > 0 && h("p", { class: "aside" }, `and ${count(more)} more`),
    h("p", { class: "aside" }, "A stream on a pattern is on none of its channels here."),
  ];
}
