// The realtime page: one stream on the user's channels, four panels. This file joins the parts.

import { ConnectionBar } from "./connection_bar.js";
import { find, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { words } from "./format.js";
import { Live } from "./live.js";
import { AlertsPanel } from "./panels/alerts.js";
import { BacktestPanel } from "./panels/backtest.js";
import { PortfolioPanel } from "./panels/portfolio.js";
import { CHANNEL as QUOTES, Quotes } from "./panels/quotes.js";
import { TrainingPanel } from "./panels/training.js";
import { ApiError } from "./session.js";
import { Shell } from "./shell.js";

const PANELS = {
  dashboard: { make: PortfolioPanel, history: 600 },
  alerts: { make: AlertsPanel, history: 200 },
  training: { make: TrainingPanel, history: 100 },
  backtest: { make: BacktestPanel, history: 150 },
};

const NOT_GRANTED = "This account may not read this channel.";
const NOTE_TIME = 60_000; // milliseconds that the news of a gap stays

let live = null;
const shell = new Shell({ begin, end });
const bar = new ConnectionBar(find("#connection"), () => live?.retryNow());
const quotes = new Quotes();
const feeds = new Map(Object.entries(PANELS).map(([channel, panel]) => [channel, makeFeed(channel, panel)]));
shell.start();

function makeFeed(channel, { make: Panel, history }) {
  return new Feed(new Panel(panelOf(channel)), () => shell.session.history(channel, history));
}

function panelOf(channel) {
  return find(`[data-channel="${channel}"]`);
}

function begin(session) {
  const granted = Object.keys(PANELS).filter((channel) => session.channels.includes(channel));
  find("#to-admin").hidden = !session.grants.admin;
  for (const channel of feeds.keys()) note(channel, granted.includes(channel) ? "" : NOT_GRANTED);
  if (session.channels.includes(QUOTES)) quotes.start(session);
  if (!granted.length) {
    bar.say("this account may read none of the four channels");
    return "live";
  }
  live = new Live(session, granted, {
    // Not before: history that was read earlier would leave a gap between itself and the stream.
    onBegin: () => granted.forEach((channel) => refill(channel, "")),
    onEvent: (event) => feeds.get(event.channel)?.take(event),
    onReset: (channel, reason) => refill(channel, `There was a gap (${words(reason)}): filled anew from history.`),
    onStatus: (status) => bar.show(status),
    onExpired: () => shell.expire(),
  });
  return "live";
}

function end() {
  live?.stop();
  live = null;
  quotes.stop();
  for (const feed of feeds.values()) feed.stop();
}

async function refill(channel, sentence) {
  try {
    await feeds.get(channel)?.refill();
    note(channel, sentence);
    if (sentence) setTimeout(() => unnote(channel, sentence), NOTE_TIME);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (!live) return;
    if (error.status === 401) shell.expire();
    else note(channel, `Earlier events could not be loaded: ${error.message}.`);
  }
}

function note(channel, sentence) {
  const element = find("[data-note]", panelOf(channel));
  setText(element, sentence);
  element.hidden = !sentence;
}

/** Takes a note away, unless there is another by now. */
function unnote(channel, sentence) {
  if (find("[data-note]", panelOf(channel)).textContent === sentence) note(channel, "");
}
