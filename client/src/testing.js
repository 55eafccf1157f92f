// A server for the unit tests of applications: it takes the place of `fetch`, and does what the test says and when. It
// opens no port and sets no timer, so tests may have timers of their own.

import { isCovered } from "../../sse_app/static/sse-connection.js";

const STREAM = /^\/api\/v1\/sse\/([^/]+)$/;
const RENEWAL = /^\/api\/v1\/sse\/connections\/([^/]+)\/renew$/;
const AUTH = /^\/api\/v1\/auth\/(login|refresh|stream-token|logout)$/;
const LIFETIME = 600; // seconds of each token
const SOON = 1; // ms after which clients come back

const json = (status, body, headers) => Response.json(body, { status, headers });
const failed = (status, code, headers) => json(status, { error: { code, message: `the test answers ${status}` } }, headers);

/** Returns a token as clients read it; what is no part of that is not there. */
function tokenOf(sub, channels = ["**"]) {
  const claims = { sub, exp: Date.now() / 1000 + LIFETIME, sse: { subscribe: channels, publish: [], admin: false } };
  return `e30.${btoa(JSON.stringify(claims)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}.`;
}

/** Takes an id apart: the name of the log, and the number of the event in it. */
function split(id) {
  const [, epoch, number] = /^([\w-]+)-(\d+)$/.exec(id) ?? [];
  if (!epoch) throw new TypeError(`${id} is no event id, such as fake-7`);
  return [epoch, Number(number)];
}

/** What a test has of a server that is not there. It takes the place of `fetch` until `close`. */
class FakeServer {
  /** What streams were asked for, the newest last: `{ channels, token, lastEventId, query }`. */
  requests = [];
  /** How many tokens were renewed in place. */
  renewals = 0;
  #url;
  #accepts;
  #before = globalThis.fetch;
  #fetch = (resource, options) => this.#answer(resource, options);
  #waiting = []; // requests for streams that have no answer yet
  #expected = []; // answers to those that have not come yet
  #streams = new Set();
  #log = [];
  #user = "";

  constructor({ url = "http://localhost:8000", accepts = false } = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#accepts = accepts;
    globalThis.fetch = this.#fetch;
  }

  /** The address that clients are given. */
  get url() {
    return this.#url;
  }

  /** How many streams are open. */
  get connections() {
    return this.#streams.size;
  }

  /** The id of the last event, or of where there was none yet. */
  get lastEventId() {
    return this.#log.at(-1)?.id ?? "fake-0";
  }

  /** Opens the streams that are asked for, or else the next one. Resolves once the client has taken that in. */
  connect() {
    return this.#decide((request) => this.#open(request));
  }

  /** Refuses the streams that are asked for, or else the next one, with a status. Resolves once that was answered. */
  refuse(status, { code = `status_${status}`, retryAfter } = {}) {
    const headers = retryAfter === undefined ? {} : { "Retry-After": `${retryAfter}` };
    const answer = () => (status === 204 ? new Response(null, { status }) : failed(status, code, headers));
    return this.#decide(({ resolve }) => resolve(answer()));
  }

  /**
   * Publishes an event. Clients that are not connected get it later, as from the real server; not so with the `id` "".
   * Resolves to its id, once the clients that are connected have taken it in.
   */
  async emit(type, data = {}, { channel, id } = {}) {
    const [epoch, number] = split(this.lastEventId);
    const event = { id: id ?? `${epoch}-${number + 1}`, type, channel: channel ?? this.#onlyChannel() };
    if (id) split(id);
    const isObject = typeof data === "object" && data !== null && !Array.isArray(data);
    const whole = isObject ? { timestamp: new Date().toISOString(), ...data, channel: event.channel } : data;
    event.text = typeof whole === "string" ? whole : JSON.stringify(whole);
    if (event.id) this.#log.push(event);
    await this.#say(event, (stream) => isCovered(event.channel, stream.channels));
    return event.id;
  }

  /** Sends a ping. */
  ping() {
    return this.#tell("ping", { timestamp: new Date().toISOString() });
  }

  /** Says that a channel could not be continued without a gap. */
  reset(channel, reason = "history_trimmed") {
    return this.#tell("reset", { channel, reason });
  }

  /** Cuts all connections, as a network does that is lost. Clients come back, and what they missed comes with `connect`. */
  async drop() {
    for (const { controller } of this.#take()) controller.error(new TypeError("the connection was cut"));
    await settled();
  }

  /** Ends all streams as the server does where a token has expired. */
  expire() {
    return this.end("token_expired");
  }

  /** Ends all streams for a reason, such as "kicked" or "shutdown"; clients may come back after `retry` milliseconds. */
  async end(reason, retry = null) {
    const streams = this.#take();
    await Promise.all(streams.map((stream) => stream.write(frame("closing", JSON.stringify({ reason, retry })))));
    for (const { controller } of streams) close(controller);
    await settled();
  }

  /** Ends it, and puts `fetch` back in its place. */
  close() {
    for (const { controller } of this.#take()) close(controller);
    for (const { reject } of this.#waiting.splice(0)) reject(new TypeError("the server is gone"));
    if (globalThis.fetch === this.#fetch) globalThis.fetch = this.#before;
  }

  #onlyChannel() {
    const names = new Set([...this.#streams].flatMap(({ channels }) => [...channels]));
    if (names.size === 1) return [...names][0];
    throw new Error("say on which channel: emit(type, data, { channel })");
  }

  #take() {
    const streams = [...this.#streams];
    this.#streams.clear();
    return streams;
  }

  #tell(type, data) {
    return this.#say({ id: "", type, text: JSON.stringify(data) }, () => true);
  }

  async #say({ id, type, text }, concerns) {
    const bytes = frame(type, text, id);
    await Promise.all([...this.#streams].filter(concerns).map((stream) => stream.write(bytes)));
    await settled();
  }

  async #decide(act) {
    const requests = this.#waiting.splice(0);
    if (!requests.length) requests.push(await new Promise((resolve) => this.#expected.push(resolve)));
    await Promise.all(requests.map(act));
    await settled();
  }

  async #open({ channels, lastEventId, clientId, query, resolve, signal }) {
    const stream = { channels, ...pipe(signal, () => this.#streams.delete(stream)) };
    this.#streams.add(stream);
    resolve(new Response(stream.body, { headers: { "Content-Type": "text/event-stream" } }));
    const [epoch] = split(this.lastEventId);
    const isKnown = lastEventId && split(lastEventId)[0] === epoch;
    const position = isKnown ? lastEventId : query.get("from") === "earliest" ? `${epoch}-0` : this.lastEventId;
    const names = [...channels];
    const about = { client_id: clientId, channel: names[0], channels: names, message: "connected", conflated: [] };
    const rest = { recovered: Boolean(isKnown), retry: SOON, expires_in: LIFETIME, timestamp: new Date().toISOString() };
    await stream.write(`retry: ${SOON}\n${frame("connected", JSON.stringify({ ...about, ...rest }), position)}`);
    const replaced = lastEventId && !isKnown ? names : [];
    for (const channel of replaced) await stream.write(frame("reset", JSON.stringify({ channel, reason: "log_replaced" })));
    const isMissed = ([of, number], [, after]) => of === epoch && number > after;
    const missed = this.#log.filter(({ id, channel }) => isMissed(split(id), split(position)) && isCovered(channel, channels));
    for (const { type, text, id } of missed) await stream.write(frame(type, text, id));
  }

  #answer(resource, options = {}) {
    const url = new URL(resource.url ?? resource, globalThis.location?.href);
    const { pathname } = url;
    if (!url.href.startsWith(`${this.#url}/api/v1/`)) return this.#before.call(globalThis, resource, options);
    const path = pathname.slice(new URL(this.#url).pathname.replace(/\/$/, "").length);
    const [, names] = STREAM.exec(path) ?? [];
    const [, kind] = AUTH.exec(path) ?? [];
    if (names && names !== "status") return this.#stream(decodeURIComponent(names), url.searchParams, options.signal);
    if (kind) return this.#auth(kind, options.body ? JSON.parse(options.body) : {});
    if (RENEWAL.test(path)) return this.#renew();
    return Promise.resolve(failed(404, "not_found"));
  }

  #stream(names, query, signal) {
    return new Promise((resolve, reject) => {
      const request = { channels: new Set(names.split(",")), token: query.get("token") ?? "", lastEventId: query.get("last_event_id") ?? "", query };
      this.requests.push(request);
      const clientId = query.get("client_id") ?? "fake";
      const waiting = { ...request, clientId, resolve, reject, signal };
      signal?.addEventListener("abort", () => {
        this.#waiting = this.#waiting.filter((one) => one !== waiting);
        reject(signal.reason);
      });
      const expected = this.#expected.shift();
      if (expected) expected(waiting);
      else if (this.#accepts) this.#open(waiting);
      else this.#waiting.push(waiting);
    });
  }

  async #auth(kind, { username, channels }) {
    if (kind === "login") this.#user = username;
    if (!this.#user) return failed(401, "invalid_token");
    const stream_token = tokenOf(this.#user, channels);
    if (kind === "stream-token") return json(200, { stream_token, expires_in: LIFETIME });
    if (kind === "logout") {
      this.#user = "";
      return new Response(null, { status: 204 });
    }
    const access_token = tokenOf(this.#user);
    const tokens = { access_token, refresh_token: "fake", stream_token, token_type: "Bearer" };
    return json(200, { ...tokens, expires_in: LIFETIME, stream_expires_in: LIFETIME, channels: [] });
  }

  async #renew() {
    this.renewals += 1;
    return json(200, { expires_in: LIFETIME });
  }
}

function frame(type, text, id) {
  const lines = text.split(/\r\n|\r|\n/).map((line) => `data: ${line}\n`);
  return `${id ? `id: ${id}\n` : ""}event: ${type}\n${lines.join("")}\n`;
}

function close(controller) {
  try {
    controller.close();
  } catch {
    // The client has gone.
  }
}

/** The body of a stream. `write` resolves once the client has come back for more, so it has taken in what was written. */
function pipe(signal, onGone) {
  let controller;
  let wake = () => {};
  const gone = () => {
    onGone();
    wake();
  };
  const body = new ReadableStream(
    {
      start: (given) => (controller = given),
      pull: () => wake(),
      cancel: gone,
    },
    { highWaterMark: 0 },
  );
  signal?.addEventListener("abort", () => {
    controller.error(signal.reason);
    gone();
  });
  let last = Promise.resolve();
  const write = (text) =>
    (last = last.then(async () => {
      if (signal?.aborted) return;
      controller.enqueue(new TextEncoder().encode(text));
      await new Promise((resolve) => (wake = resolve));
    }));
  return { body, controller, write };
}

/** Lets promises that are settled be heard, without a timer. */
async function settled() {
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
}

/** A server that is not there, in place of `fetch`: for tests. */
export function fakeServer(options) {
  return new FakeServer(options);
}
