// Publishing a test event by hand.

import { h, ref } from "../vendor/vue.js";

/** The form. */
export const Publish = {
  props: { session: { type: Object, required: true }, channels: { type: Array, required: true } },
  setup(props) {
    const channel = ref("");
    const type = ref("test");
    const text = ref('{"message": "a test"}');
    const asItIs = ref(false);
    const said = ref("");
    const problem = ref("");
    async function submit(event) {
      event.preventDefault();
      said.value = problem.value = "";
      try {
        const body = { event: type.value, data: asItIs.value ? text.value : JSON.parse(text.value) };
        const path = `/api/v1/sse/${encodeURIComponent(channel.value)}`;
        const { id } = await props.session.request(path, { body });
        said.value = id ? `Published as ${id}.` : "Given to the streams that are there: it is not stored.";
      } catch (error) {
        problem.value = error instanceof SyntaxError ? `The data is no JSON: ${error.message}` : error.message;
      }
    }
    const field = (label, value, more = {}) =>
      h("label", { class: more.class }, [
        label,
        h("input", {
          ...more,
          class: undefined,
          required: true,
          value: value.value,
          onInput: (event) => (value.value = event.target.value),
          autocomplete: "off",
          spellcheck: false,
        }),
      ]);
    return () =>
      h("section", { class: "panel", "aria-labelledby": "publish-title" }, [
        h("header", h("h2", { id: "publish-title" }, "Publish a test event")),
        h("form", { class: "fields", onSubmit: submit }, [
          field("Channel", channel, { list: "publish-channels", name: "channel" }),
          h(
            "datalist",
            { id: "publish-channels" },
            props.channels.map((name) => h("option", { value: name, key: name })),
          ),
          field("Type", type, { name: "type", pattern: "[A-Za-z0-9_.:\\-]{1,128}" }),
          h("label", { class: "whole" }, [
            "Data",
            h("textarea", {
              rows: 3,
              class: "code",
              spellcheck: false,
              value: text.value,
              onInput: (event) => (text.value = event.target.value),
            }),
          ]),
          h("label", { class: "whole choice" }, [
            h("input", {
              type: "checkbox",
              name: "text",
              checked: asItIs.value,
              onChange: (event) => (asItIs.value = event.target.checked),
            }),
            "A text as it is, not JSON",
          ]),
          h("button", { type: "submit" }, "Publish"),
        ]),
        h("p", { role: "status", class: "aside" }, said.value),
        h("p", { role: "alert", class: "problem" }, problem.value),
      ]);
  },
};
