// The server's own page: shows what the public status says, again every few seconds while the page is on the screen.

import { find, make, setFigures, setText } from "./dom.js";
import { count, duration } from "./format.js";

const AGAIN = 5000; // ms between two looks
const TIMEOUT = 10_000; // ms

const state = find(".state");
let next = 0;
let looking = false;

for (const place of document.querySelectorAll("[data-origin]")) setText(place, location.origin);
document.addEventListener("visibilitychange", () => document.hidden || look());
look();

async function look() {
  if (looking) return;
  looking = true;
  clearTimeout(next);
  try {
    const [status, obstacle] = await Promise.all([answerOf("/api/v1/sse/status"), obstacleNow()]);
    show(status);
    if (obstacle) say("reconnecting", "Not ready", obstacle);
    else say("live", "Ready", silent(status));
  } catch (error) {
    say("offline", "No answer", error.message);
  }
  looking = false;
  if (!document.hidden) next = setTimeout(look, AGAIN);
}

async function answerOf(path) {
  const response = await ask(path);
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
}

/** Returns why no new streams should come here, or nothing. */
async function obstacleNow() {
  const response = await ask("/readyz");
  if (response.ok) return "";
  return (await response.json().catch(() => null))?.error?.message ?? `/readyz answers ${response.status}`;
}

function ask(path) {
  return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) }).catch(() => {
    throw new Error("the server cannot be reached");
  });
}

function show({ version, uptime_seconds: uptime, total_connections: streams, channels }) {
  const rows = Object.entries(channels);
  const events = rows.reduce((sum, [, each]) => sum + each.events_published, 0);
  setFigures(document, {
    version,
    streams: count(streams),
    channels: count(rows.length),
    events: count(events),
    uptime: duration(uptime),
  });
  find("[data-channels]").replaceChildren(...rows.map(row));
  if (rows.length) for (const place of document.querySelectorAll("[data-channel]")) setText(place, rows[0][0]);
}

function row([name, { connection_count: streams, events_published: events, last_event_id: last }]) {
  const made = make("tr");
  const heading = make("th", "", name);
  heading.scope = "row";
  made.append(heading, make("td", "", count(streams)), make("td", "", count(events)), make("td", "code", last ?? "–"));
  return made;
}

/** Says which workers or nodes the figures lack. */
function silent({ workers_missing: workers = [], nodes_missing: nodes = [] }) {
  const names = [...workers.map((name) => `worker ${name}`), ...nodes.map((name) => `node ${name}`)];
  return names.length ? `without the figures of ${names.join(", ")}` : "";
}

function say(which, title, reason) {
  state.dataset.state = which;
  setText(find("[data-title]", state), title);
  setText(find("[data-reason]", state), reason);
}
