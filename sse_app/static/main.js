// The realtime page: login, one stream on the user's channels, four panels. This file joins the parts.

import { ConnectionBar } from "./connection_bar.js";
import { find, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { words } from "./format.js";
import { AlertsPanel } from "./panels/alerts.js";
import { BacktestPanel } from "./panels/backtest.js";
import { PortfolioPanel } from "./panels/portfolio.js";
import { TrainingPanel } from "./panels/training.js";
import { ApiError, Session } from "./session.js";
import { Stream } from "./stream.js";

const PANELS = {
  dashboard: { make: PortfolioPanel, history: 600 },
  alerts: { make: AlertsPanel, history: 200 },
  training: { make: TrainingPanel, history: 100 },
  backtest: { make: BacktestPanel, history: 150 },
};

const NOT_GRANTED = "This account may not read this channel.";
const NOTE_TIME = 60_000; // milliseconds that the news of a gap stays

const CLIENT_ID = `page-${randomText(9)}`;

const login = find("#login");
const form = find("#login-form");
const problem = find("#login-problem");
const live = find("#live");
const session = new Session();
const bar = new ConnectionBar(find("#connection"), () => stream?.retryNow());
const feeds = new Map(Object.entries(PANELS).map(([channel, panel]) => [channel, makeFeed(channel, panel)]));
let stream = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn();
});
find("#logout").addEventListener("click", () => {
  end("You are logged out.");
  problem.classList.add("calm");
});

function makeFeed(channel, { make: Panel, history }) {
  return new Feed(new Panel(panelOf(channel)), () => session.history(channel, history));
}

function panelOf(channel) {
  return find(`[data-channel="${channel}"]`);
}

async function logIn() {
  const button = find("button", form);
  button.disabled = true;
  say("");
  try {
    const granted = await session.logIn(form.username.value.trim(), form.password.value);
    form.password.value = "";
    begin(granted);
  } catch (error) {
    say(loginProblem(error));
    form.password.focus();
  } finally {
    button.disabled = false;
  }
}

function loginProblem(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) return "This name and password do not fit.";
  return `That did not work: ${error.message}.`;
}

function begin({ streamToken, channels }) {
  const granted = Object.keys(PANELS).filter((channel) => channels.includes(channel));
  setText(find("#who"), session.username);
  showView(live);
  find("#connection").focus();
  for (const channel of feeds.keys()) note(channel, granted.includes(channel) ? "" : NOT_GRANTED);
  if (!granted.length) {
    bar.say("this account may read none of the four channels");
    return;
  }
  stream = new Stream(session, granted, CLIENT_ID, {
    // Not before: history that was read earlier would leave a gap between itself and the stream.
    onBegin: () => granted.forEach((channel) => refill(channel, "")),
    onEvent: (event) => feeds.get(event.channel)?.take(event),
    onReset: (channel, reason) => refill(channel, `There was a gap (${words(reason)}): filled anew from history.`),
    onStatus: (status) => bar.show(status),
    onExpired: expire,
  });
  stream.start(streamToken);
}

async function refill(channel, sentence) {
  try {
    await feeds.get(channel)?.refill();
    note(channel, sentence);
    if (sentence) setTimeout(() => unnote(channel, sentence), NOTE_TIME);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) expire();
    else note(channel, `Earlier events could not be loaded: ${error.message}.`);
  }
}

function expire() {
  if (stream) end("Your login has expired. Please log in again.");
}

/** Goes back to the login form, and says why. */
function end(sentence) {
  stream?.stop();
  stream = null;
  session.logOut();
  for (const feed of feeds.values()) feed.stop();
  say(sentence);
  showView(login);
  form.password.focus();
}

function say(sentence) {
  problem.classList.remove("calm");
  setText(problem, sentence);
}

function showView(view) {
  login.hidden = view !== login;
  live.hidden = view !== live;
  find("#account").hidden = view !== live;
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

function randomText(length) {
  const letters = "abcdefghijkmnpqrstuvwxyz23456789"; // 32, so that no letter is likelier than another
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => letters[byte % letters.length]).join("");
}
