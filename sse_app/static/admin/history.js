// The history of a channel: its last events, or those after an id.

import { clock } from "../format.js";
import { h, ref } from "../vendor/vue.js";

const LIMIT = 50;

/** The browser. */
export const History = {
  props: { session: { type: Object, required: true }, channels: { type: Array, required: true } },
  setup(props) {
    const channel = ref("");
    const after = ref("");
    const events = ref([]);
    const said = ref("");
    const problem = ref("");
    async function load(event) {
      event?.preventDefault();
      problem.value = "";
      try {
        events.value = await props.session.history(channel.value, LIMIT, after.value.trim());
        said.value = `${events.value.length} events of ${channel.value}`;
      } catch (error) {
        events.value = [];
        [said.value, problem.value] = ["", error.message];
      }
    }
    function goOn() {
      after.value = events.value[events.value.length - 1].id;
      load();
    }
    const input = (label, value, more) =>
      h("label", { class: more.class }, [
        label,
        h("input", {
          ...more,
          class: undefined,
          value: value.value,
          onInput: (event) => (value.value = event.target.value),
          autocomplete: "off",
          spellcheck: false,
        }),
      ]);
    return () =>
      h("section", { class: "panel", "aria-labelledby": "history-title" }, [
        h("header", [
          h("h2", { id: "history-title" }, "History"),
          h("span", { class: "aside", role: "status" }, said.value),
        ]),
        h("form", { class: "fields", onSubmit: load }, [
          input("Channel", channel, { required: true, list: "history-channels", name: "channel" }),
          h(
            "datalist",
            { id: "history-channels" },
            props.channels.map((name) => h("option", { value: name, key: name })),
          ),
          input("After id (empty: the last)", after, { name: "after" }),
          h("button", { type: "submit" }, "Show"),
          h(
            "button",
            { type: "button", class: "quiet", disabled: events.value.length < LIMIT || !after.value, onClick: goOn },
            "Next",
          ),
        ]),
        h("p", { role: "alert", class: "problem" }, problem.value),
        h("ol", { class: "events", tabindex: 0, "aria-label": "Events, oldest first" }, events.value.map(item)),
      ]);
  },
};

function item({ id, event, data }) {
  return h("li", { key: id }, [
    h("p", { class: "event-head" }, [
      h("strong", event),
      h("span", { class: "code" }, id),
      h("time", clock(new Date(data.timestamp))),
    ]),
    h("pre", { class: "code" }, JSON.stringify(data)),
  ]);
}
