// The admin dashboard: the login, the stream of figures, and what is shown. This file joins the parts.

import { ConnectionBar } from "../connection_bar.js";
import { find } from "../dom.js";
import { Live } from "../live.js";
import { ApiError } from "../session.js";
import { Shell } from "../shell.js";
import { createApp } from "../vendor/vue.js";
import { Dashboard } from "./dashboard.js";
import { Figures } from "./figures.js";

const CHANNEL = "sse_app.admin";

let app = null;
let live = null;
let figures = null;
let connections = -1; // how often the stream has come back

const shell = new Shell({ begin, end });
const bar = new ConnectionBar(find("#connection"), () => live?.retryNow());
shell.start();

function begin(session) {
  if (!session.grants.admin) return "refused"; // nothing is asked for that would be refused
  figures = new Figures();
  app = createApp(Dashboard, { session, figures });
  app.mount(find("#dashboard"));
  connections = -1;
  live = new Live(
    session,
    [CHANNEL],
    {
      onBegin: () => {},
      onEvent: ({ data }) => figures.add([data]),
      onReset: () => {}, // of another log: figures are in none
      onStatus: showStatus,
      onExpired: () => shell.expire(),
    },
    { events: ["figures"], share: false, replays: false }, // no tab of the realtime page needs the figures
  );
  return "live";
}

function end() {
  live?.stop();
  app?.unmount();
  live = app = figures = null;
}

function showStatus(status) {
  bar.show(status);
  if (status.state !== "live" || status.reconnects === connections) return;
  connections = status.reconnects;
  fillIn(figures);
}

/** Gets what was taken before this page listened, or while it could not: figures are not replayed. */
async function fillIn(into) {
  try {
    into.add((await shell.session.request("/api/v1/admin/figures")).figures);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) shell.expire();
  }
}
