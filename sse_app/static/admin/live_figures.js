// The live figures: numbers of this moment, charts of the last minutes, counts by channel and by reason.

import { LineChart } from "../chart.js";
import { axisNumber, bytes, compact, count, duration, fixed } from "../format.js";
import { h, onBeforeUnmount, onMounted, ref, watch } from "../vendor/vue.js";
import { time } from "./figures.js";

const X_STEPS = [5, 10, 15, 30, 60, 120];
const milliseconds = (seconds) => (seconds === null ? null : seconds * 1000);
const ms = (value) => (value === null ? "–" : `≤ ${fixed(value, value < 10 ? 1 : 0)} ms`);

const CHARTS = [
  { title: "Streams", lines: [["streams", (each) => each.streams]], format: count },
  { title: "Deliveries a second", lines: [["deliveries", (each) => each.deliveries_per_second]], format: count },
  {
    title: "Publishes a second",
    lines: [["publishes", (each) => each.publishes_per_second]],
    format: (value) => fixed(value, 1),
  },
  {
    title: "Latency, 99th percentile",
    lines: [
      ["publish", (each) => milliseconds(each.publish_seconds.p99)],
      ["fan-out", (each) => milliseconds(each.fan_out_seconds.p99)],
    ],
    format: (value) => `${fixed(value, 1)} ms`,
    holds: true, // a second without a publish has no latency: that is no gap
  },
  { title: "Backlog", lines: [["bytes", (each) => each.backlog_bytes]], format: bytes },
  {
    title: "Reconnects and refusals a second",
    lines: [
      ["reconnects", (each) => each.reconnects_per_second],
      ["refusals", (each) => each.refusals_per_second],
    ],
    format: (value) => fixed(value, 1),
  },
];
const COLOURS = ["accent", "high"];

const NUMBERS = [
  ["Streams", (now) => count(now.streams)],
  ["Users", (now) => count(now.users)],
  ["Deliveries / s", (now) => count(now.deliveries_per_second)],
  ["Publishes / s", (now) => fixed(now.publishes_per_second, 1)],
  ["Publish p50", (now) => ms(milliseconds(now.publish_seconds.p50))],
  ["Fan-out p50", (now) => ms(milliseconds(now.fan_out_seconds.p50))],
  ["Backlog", (now) => bytes(now.backlog_bytes)],
  ["Streams behind", (now) => count(now.streams_behind)],
  ["Reconnects", (now) => count(now.reconnects)],
  ["Refusals / s", (now) => fixed(now.refusals_per_second, 1)],
  ["Processor", (now) => `${fixed(now.cpu * 100, 0)}%`],
  ["Up for", (now) => duration(now.uptime_seconds)],
  ["Log head", (now) => now.log_head, "code"],
];

/** One chart, kept in step with the figures. */
const Chart = {
  props: { figures: { type: Object, required: true }, chart: { type: Object, required: true } },
  setup({ figures, chart }) {
    const box = ref(null);
    let drawn = null;
    onMounted(() => {
      drawn = new LineChart(box.value, {
        label: chart.title,
        lines: chart.lines.map(([name], number) => ({ name, colour: COLOURS[number], area: chart.lines.length === 1 })),
        formatTick:
          chart.format === bytes ? bytes : (value, step) => (step >= 1 ? compact(value) : axisNumber(value, step)),
        formatValue: chart.format,
        formatX: time,
        xSteps: X_STEPS,
        yInclude: [0, chart.format === bytes ? 1024 : 0],
      });
      show();
    });
    onBeforeUnmount(() => drawn.remove());
    const show = () => drawn?.show(points(figures, chart));
    watch(figures.latest, show);
    return () =>
      h("figure", [
        h("figcaption", [chart.title, chart.lines.length > 1 && chart.lines.map(key)]),
        h("div", { class: "chart", ref: box, "data-chart": chart.lines[0][0] }),
      ]);
  },
};

function key([name], number) {
  return h("span", { class: "key", "data-colour": COLOURS[number] }, name);
}

function points(figures, chart) {
  const last = chart.lines.map(() => 0);
  const read = (each) =>
    chart.lines.map(([, value], number) => {
      const found = value(each);
      if (found === null && chart.holds) return last[number];
      last[number] = found;
      return found;
    });
  return figures.points(read);
}

/** The whole panel. */
export const LiveFigures = {
  props: { figures: { type: Object, required: true } },
  emits: ["channel"],
  setup({ figures }, { emit }) {
    const look = (name) => (event) => (event.preventDefault(), emit("channel", name));
    const link = (name) => h("a", { href: "#present-title", title: "Who is on it", onClick: look(name) }, name);
    return () => {
      const now = figures.latest.value;
      return h("section", { class: "panel", "aria-labelledby": "figures-title" }, [
        h("header", [
          h("h2", { id: "figures-title" }, "Live figures"),
          now && !now.log_available && h("span", { class: "pill", "data-state": "failed" }, "event log away"),
          now && silent(now) && h("span", { class: "pill", "data-state": "failed", role: "status" }, silent(now)),
          now && h("span", { class: "aside" }, `version ${now.version}, once a second`),
        ]),
        h(
          "dl",
          { class: "figures tiles" },
          NUMBERS.map(([title, read, style]) =>
            h("div", { key: title }, [
              h("dt", title),
              h("dd", { class: style, "data-number": title }, now ? read(now) : "–"),
            ]),
          ),
        ),
        h(
          "div",
          { class: "charts" },
          CHARTS.map((chart) => h(Chart, { key: chart.title, figures, chart })),
        ),
        h("div", { class: "charts" }, [
          now && nodes(now),
          counts(
            "Channels",
            ["Channel", "Streams", "Events"],
            (now?.channels ?? []).map((row) => [row.channel, row.streams, row.events]),
            count,
            link,
          ),
          counts("Refused", ["Reason", "Times"], Object.entries(now?.refusals ?? {})),
          counts("Streams ended", ["Reason", "Times"], Object.entries(now?.endings ?? {})),
        ]),
      ]);
    };
  },
};

/**
 * Which nodes an answer is about: workers of a machine, or machines.
 * @returns {{noun: string, name: string, answering: ?object[], missing: string[]} | null} null where there is one only
 */
export function nodesOf(answer) {
  const noun = answer.nodes_missing ? "node" : answer.workers_missing ? "worker" : "";
  if (!noun) return null;
  const name = noun[0].toUpperCase() + noun.slice(1);
  return { noun, name, answering: answer[`${noun}s`], missing: answer[`${noun}s_missing`] };
}

/** Which nodes have not answered, as a sentence without its end; empty where all have. */
export function silent(answer) {
  const { name, missing } = nodesOf(answer) ?? { missing: [] };
  if (!missing.length) return "";
  return missing.length === 1 ? `${name} ${missing[0]} does not answer` : `${name}s ${missing.join(", ")} do not answer`;
}

const inOrder = new Intl.Collator("en", { numeric: true }).compare;

/** Who has what: one row for each node. */
function nodes(now) {
  const of = nodesOf(now);
  if (!of?.answering) return null;
  const rows = [
    ...of.answering.map((each) => [
      each[of.noun],
      count(each.streams),
      count(each.deliveries_per_second),
      `${fixed(each.cpu * 100, 0)}%`,
      bytes(each.backlog_bytes),
      each.draining ? "draining" : duration(each.uptime_seconds),
    ]),
    ...of.missing.map((name) => [name, "–", "–", "–", "–", "no answer"]),
  ].sort(([one], [other]) => inOrder(one, other));
  const columns = [of.name, "Streams", "Deliveries / s", "Processor", "Backlog", "Up for"];
  const scrolls = { class: "whole scroll", tabindex: 0, role: "region", "aria-label": `Table of ${of.noun}s` };
  return h("div", scrolls, counts(`${of.name}s`, columns, rows, String, String));
}

function counts(title, columns, rows, format = count, named = (name) => String(name).replaceAll("_", " ")) {
  return h("div", [
    h("table", { class: "counts" }, [
      h("caption", title),
      h(
        "thead",
        h(
          "tr",
          columns.map((column) => h("th", { scope: "col" }, column)),
        ),
      ),
      h(
        "tbody",
        rows.map(([name, ...values]) =>
          h("tr", { key: name }, [
            h("th", { scope: "row" }, named(name)),
            values.map((value) => h("td", format(value))),
          ]),
        ),
      ),
    ]),
    !rows.length && h("p", { class: "aside" }, "None so far"),
  ]);
}
