// The history of a channel or of a pattern: its last events, or those after an id; and live what follows.

import { oncePerFrame } from "../dom.js";
import { clock } from "../format.js";
import { h, nextTick, onUnmounted, ref, shallowRef } from "../vendor/vue.js";
import { Follower } from "./follower.js";

const LIMIT = 50;
const MOST = 1000; // as many as the server gives at once, and the page shows

/** The browser. */
export const History = {
  props: { session: { type: Object, required: true }, channels: { type: Array, required: true } },
  setup(props) {
    const channel = ref("");
    const after = ref("");
    const limit = ref(String(LIMIT));
    const events = shallowRef([]);
    const said = ref("");
    const problem = ref("");
    const list = ref(null);
    const follower = shallowRef(null); // whose private members no proxy reaches
    let fresh = [];
    let number = 0; // of an event on this page: not each has an id
    const numbered = (event) => ({ ...event, number: number++ });
    const show = oncePerFrame(() => {
      const { scrollHeight = 0, scrollTop = 0, clientHeight = 0 } = list.value ?? {};
      const atEnd = scrollHeight - scrollTop - clientHeight < 40;
      events.value = [...events.value, ...fresh].slice(-MOST);
      fresh = [];
      if (atEnd) nextTick(() => list.value && (list.value.scrollTop = list.value.scrollHeight));
    });
    const stop = () => {
      follower.value?.stop();
      follower.value = null;
      fresh = [];
    };
    onUnmounted(stop);

    async function load(event) {
      event?.preventDefault();
      stop();
      problem.value = "";
      try {
        const found = await props.session.history(channel.value, limit.value, after.value.trim());
        events.value = found.map(numbered);
        said.value = `${events.value.length} events of ${channel.value}`;
        return true;
      } catch (error) {
        events.value = [];
        [said.value, problem.value] = ["", error.message];
        return false;
      }
    }
    function goOn() {
      after.value = lastId();
      load();
    }
    const lastId = () => events.value.findLast(({ id }) => id)?.id ?? "";
    async function follow(event) {
      if (follower.value) {
        stop();
        said.value = `${events.value.length} events of ${channel.value}`;
      } else if (event.target.form.reportValidity() && (await load())) {
        follower.value = new Follower(props.session, channel.value, lastId(), {
          onEvent: (event) => {
            fresh.push(numbered(event));
            if (fresh.length > MOST) fresh.shift();
            show();
          },
          onSay: (sentence) => (said.value = `${channel.value}: ${sentence}`),
          onEnd: (why) => {
            follower.value = null;
            said.value = `${channel.value}: ${why}`;
          },
        });
      }
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
          input("Channel or pattern", channel, { required: true, list: "history-channels", name: "channel" }),
          h(
            "datalist",
            { id: "history-channels" },
            props.channels.map((name) => h("option", { value: name, key: name })),
          ),
          input("After id (empty: the last)", after, { name: "after" }),
          input("How many", limit, { name: "limit", type: "number", min: 1, max: MOST, required: true }),
          h("button", { type: "submit" }, "Show"),
          h(
            "button",
            { type: "button", class: "quiet", disabled: events.value.length < limit.value || !after.value, onClick: goOn },
            "Next",
          ),
          h("button", { type: "button", class: "quiet", "aria-pressed": String(!!follower.value), onClick: follow }, "Live"),
        ]),
        h("p", { role: "alert", class: "problem" }, problem.value),
        h("ol", { class: "events", ref: list, tabindex: 0, "aria-label": "Events, oldest first" }, events.value.map(item)),
      ]);
  },
};

function item({ id, channel, event, data, number }) {
  return h("li", { key: number }, [
    h("p", { class: "event-head" }, [
      h("strong", event),
      h("span", { class: "code" }, id || "not stored"),
      h("span", { class: "code" }, channel),
      h("time", clock(new Date(data?.timestamp))),
    ]),
    h("pre", { class: "code" }, typeof data === "string" ? data : JSON.stringify(data)),
  ]);
}
