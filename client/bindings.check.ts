// Compiled by `npm run types`: what applications do with the bindings fits the declarations.
import { Session } from "@sse-app/client/session";
import * as react from "@sse-app/client/react";
import { sseStore } from "@sse-app/client/svelte";
import { fakeServer } from "@sse-app/client/testing";
import { configureSSE, useAlertsSSE, useBacktestSSE, useDashboardSSE, useSSE, useTrainingSSE } from "@sse-app/client/vue";
import { get, type Readable } from "svelte/store";
import { ref } from "vue";

interface Alert {
  severity: "low" | "high";
  message: string;
}

interface Events {
  risk_alert: Alert;
  note: string;
}

configureSSE({ baseURL: "https://events.example", token: new Session("https://events.example") });
react.configureSSE({ onClose: ({ reason }) => console.log(reason) });

// The data of all events.
const one = useSSE<Alert>("/api/v1/sse/alerts", { onEvent: ({ data }) => console.log(data.severity, data.channel) });
const severity: "low" | "high" | undefined = one.lastEvent.value?.data.severity;
// @ts-expect-error an alert has no such member
one.lastEvent.value?.data.sevrity;
const open: boolean = one.isConnected.value;

// The data of each type of events.
const each = useSSE<any, Events>(() => "/api/v1/sse/alerts", {
  channels: ref(["alerts"]),
  onEvent(event) {
    if (event.type === "note") console.log(event.data.toUpperCase());
    else console.log(event.data.message, event.data.timestamp);
    // @ts-expect-error a note has no severity
    if (event.type === "note") console.log(event.data.severity);
    // @ts-expect-error there is no such type
    if (event.type === "nothing") console.log(event.id);
  },
});
console.log(severity, open, each.status.value);
useSSE(ref<string | null>(null), { channels: null });
// @ts-expect-error a URL is a text
useSSE(7);

// Views by the names of an older service.
const { metrics, updateType, lastUpdate, connect } = useDashboardSSE();
const { alerts, latestAlert, clearAlerts } = useAlertsSSE({ maxAlerts: 5, onAlert: (alert) => console.log(alert.message) });
const { taskId, progress, status, message } = useTrainingSSE("t1", { autoConnect: false, clientId: "training-1" });
const { currentDate, results } = useBacktestSSE(ref<string | null>(null));
useTrainingSSE({ taskId: () => "t1", onError: (error) => console.log(error.message) });
console.log(metrics.value.total, updateType.value.length, lastUpdate.value?.getTime(), connect, alerts.value[0]?.read);
console.log(latestAlert.value?.severity, clearAlerts, progress.value.toFixed(), `${taskId.value}${status.value}${message.value}`);
console.log(currentDate.value.length, results.value);

// React and Svelte.
export function Alerts() {
  const { lastEvent, isConnected } = react.useSSE<Alert>("/api/v1/sse/alerts", { channels: undefined, share: false });
  const { lastEvent: last } = react.useSSE<any, Events>(null, { channels: ["alerts"] });
  if (last?.type === "note") return last.data.length;
  return isConnected && lastEvent?.data.severity;
}
const store = sseStore<Alert>("/api/v1/sse/alerts");
const readable: Readable<{ isConnected: boolean }> = store;
console.log(get(readable).isConnected, get(store).lastEvent?.data.message);
store.go("/api/v1/sse", ["alerts"]);
// @ts-expect-error a store of Svelte is read by subscribing
store.value;

// The server of unit tests.
async function unitTest() {
  const server = fakeServer({ accepts: false });
  await server.connect();
  const id: string = await server.emit("risk_alert", { severity: "low" }, { channel: "alerts" });
  await server.refuse(503, { retryAfter: 1 });
  console.log(id, server.requests[0].channels.has("alerts"), server.requests[0].lastEventId, server.connections.toFixed());
  // @ts-expect-error a status is a number
  await server.refuse("503");
  server.close();
}
unitTest();
