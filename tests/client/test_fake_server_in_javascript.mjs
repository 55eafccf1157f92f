// What the fake server for unit tests does to real clients, in Node.js; run by the Python file of the same name.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import FakeTimers from "@sinonjs/fake-timers";
import { effectScope } from "vue";
import { SSEClient } from "@sse-app/client";
import { Session } from "@sse-app/client/session";
import { fakeServer } from "@sse-app/client/testing";
import { configureSSE, useAlertsSSE, useTrainingSSE } from "@sse-app/client/vue";

const real = globalThis.fetch;
const clients = [];
let server, log;

beforeEach(() => {
  server = fakeServer();
  log = [];
});

afterEach(() => {
  clients.splice(0).forEach((client) => client.close());
  server.close();
  assert.equal(globalThis.fetch, real);
});

function open(options = {}) {
  const client = new SSEClient(`${server.url}/api/v1/sse`, {
    channels: ["alerts"],
    token: async () => "token",
    onOpen: ({ recovered }) => log.push(recovered ? "back" : "open"),
    onEvent: ({ id, type, channel, data }) => log.push([id, type, channel, data.n ?? data]),
    onReset: ({ channel, reason }) => log.push(`${channel}: ${reason}`),
    onReconnect: ({ reason }) => log.push(reason),
    onClose: ({ reason }) => log.push(`over: ${reason}`),
    ...options,
  });
  clients.push(client);
  return client;
}

test("a client waits until it is let in", async () => {
  const client = open();
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(client.readyState, SSEClient.CONNECTING);
  await server.connect();
  assert.equal(client.readyState, SSEClient.OPEN);
  assert.equal(server.connections, 1);
  const [{ channels, token, lastEventId }] = server.requests;
  assert.deepEqual([[...channels], token, lastEventId], [["alerts"], "token", ""]);
});

test("events have come when they were emitted, of the channels that were asked for", async () => {
  open({ channels: ["alerts", "training.*"] });
  await server.connect();
  const id = await server.emit("risk_alert", { n: 1 }, { channel: "alerts" });
  assert.deepEqual(log, ["open", [id, "risk_alert", "alerts", 1]]);
  await server.emit("progress", { n: 2 }, { channel: "training.t1" });
  await server.emit("update", { n: 3 }, { channel: "dashboard" });
  await server.emit("note", "two\nlines", { channel: "alerts" });
  await server.emit("passing", { n: 5 }, { channel: "alerts", id: "" });
  await server.emit("named", { n: 6 }, { channel: "alerts", id: "fake-10" });
  await server.emit("next", { n: 7 }, { channel: "alerts" });
  await server.ping();
  assert.deepEqual(log.slice(2), [
    ["fake-2", "progress", "training.t1", 2],
    ["fake-4", "note", "", "two\nlines"],
    ["", "passing", "alerts", 5],
    ["fake-10", "named", "alerts", 6],
    ["fake-11", "next", "alerts", 7],
  ]);
  await assert.rejects(server.emit("risk_alert", {}), /channel/);
  await assert.rejects(server.emit("risk_alert", {}, { channel: "alerts", id: "x" }), /no event id/);
});

test("nothing is missed and nothing comes twice, however a stream ends", async () => {
  open();
  await server.connect();
  let n = 0;
  for (const end of [() => server.drop(), () => server.expire(), () => server.end("shutdown", 1)]) {
    await server.emit("tick", { n: (n += 1) });
    await end();
    assert.equal(server.connections, 0);
    await server.emit("tick", { n: (n += 1) }, { channel: "alerts" });
    await server.connect();
  }
  assert.deepEqual(log.filter(Array.isArray).map(([, , , number]) => number), [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(log.filter((one) => !Array.isArray(one)), [
    "open", "lost", "back", "token_expired", "back", "shutdown", "back",
  ]);
  assert.deepEqual(server.requests.map(({ lastEventId }) => lastEventId), ["", "fake-1", "fake-3", "fake-5"]);
});

test("what a server says is what the client does", async () => {
  open();
  await server.refuse(503, { retryAfter: 0 });
  await server.connect();
  await server.reset("alerts");
  await server.end("kicked");
  assert.deepEqual(log, ["status 503", "open", "alerts: history_trimmed", "over: kicked"]);
  for (const [status, reason, detail] of [[403, "status 403"], [403, "kicked", { code: "kicked" }], [204, "ended"]]) {
    log = [];
    open();
    await server.refuse(status, detail);
    assert.deepEqual(log, [`over: ${reason}`]);
  }
  log = [];
  open({ token: "a text" });
  await server.connect();
  await server.expire();
  assert.deepEqual(log, ["open", "over: token_expired"]);
});

test("another log is told of", async () => {
  open();
  await server.connect();
  await server.emit("tick", { n: 1 });
  await server.drop();
  await server.emit("tick", { n: 2 }, { channel: "alerts", id: "other-1" });
  await server.connect();
  await server.emit("tick", { n: 3 });
  assert.deepEqual(log.slice(2), ["lost", "open", "alerts: log_replaced", ["other-2", "tick", "alerts", 3]]);
});

test("fake timers decide when clients come back, and when they renew their tokens", async () => {
  const clock = FakeTimers.install();
  try {
    open();
    await server.connect();
    await server.drop();
    assert.equal(server.requests.length, 1);
    await clock.tickAsync(1000);
    assert.equal(server.requests.length, 2);
    await server.connect();
    assert.equal(server.renewals, 0);
    for (let minute = 0; minute < 12; minute++) {
      await clock.tickAsync(30_000);
      await server.ping();
      await clock.tickAsync(30_000);
      await server.ping();
    }
    assert.ok(server.renewals > 0);
    assert.equal(server.connections, 1);
  } finally {
    clock.uninstall();
  }
});

test("a session logs in and out", async () => {
  const reasons = [];
  const session = new Session(server.url, { cookie: false, onEnded: ({ reason }) => reasons.push(reason) });
  await session.login("ann", "any");
  assert.equal(session.username, "ann");
  open({ token: session });
  await server.connect();
  assert.match(server.requests[0].token, /^e30\./);
  await session.logout();
  assert.deepEqual(reasons, ["logout"]);
  await assert.rejects(session.streamToken(["alerts"]), { status: 401 });
});

test("it lets in by itself where it is told to, and answers for one address", async () => {
  server.close();
  globalThis.fetch = async (url) => `${url}`;
  const elsewhere = globalThis.fetch;
  server = fakeServer({ url: "https://events.example/base/", accepts: true });
  assert.equal(await fetch("https://other.example/api/v1/sse/alerts"), "https://other.example/api/v1/sse/alerts");
  assert.equal((await fetch("https://events.example/base/api/v1/other")).status, 404);
  const opened = new Promise((resolve) => open({ onOpen: resolve }));
  assert.deepEqual((await opened).channels, ["alerts"]);
  server.close();
  assert.equal(globalThis.fetch, elsewhere);
  globalThis.fetch = real;
});

test("views of an application share its one stream", async () => {
  globalThis.document = new EventTarget();
  configureSSE({ baseURL: server.url, token: "any" });
  const scope = effectScope();
  const { alerts, training } = scope.run(() => ({ alerts: useAlertsSSE(), training: useTrainingSSE("t1") }));
  await server.connect();
  assert.deepEqual([...server.requests[0].channels], ["alerts", "training"]);
  await server.emit("risk_alert", { message: "high" }, { channel: "alerts" });
  await server.emit("training_progress", { task_id: "t2", progress: 50 }, { channel: "training" });
  await server.emit("training_progress", { task_id: "t1", progress: 7 }, { channel: "training" });
  assert.equal(alerts.latestAlert.value.message, "high");
  assert.equal(training.progress.value, 7);
  await server.drop();
  assert.equal(alerts.isConnected.value, false);
  await server.connect();
  assert.equal(alerts.isConnected.value, true);
  scope.stop();
  await new Promise((resolve) => setTimeout(resolve));
  assert.equal(server.connections, 0);
  delete globalThis.document;
});
