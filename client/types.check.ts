// Compiled by `npm run types`: what the examples do fits the declarations.
import { SSEClient } from "@sse-app/client";
import { Session, SessionError } from "@sse-app/client/session";
import { configureSSE, useBacktestProgress, useDashboardUpdates, useRiskAlerts, useSSE, useTrainingProgress } from "@sse-app/client/vue";

const client = new SSEClient("/api/v1/sse", {
  channels: ["alerts"],
  token: async (channels) => channels.join(),
  onEvent: ({ id, type, channel, data }) => console.log(id, type, channel, data.severity),
  onReset: ({ channel, reason }) => console.log(channel, reason),
  onReconnect: ({ delay, reason }) => console.log(delay.toFixed(), reason),
  onClose: ({ reason, status }) => console.log(reason, status),
});
client.addEventListener("risk_alert", (event) => console.log(JSON.parse(event.data), event.lastEventId));
client.addEventListener("open", (event) => console.log(event.detail.client_id));
client.close();
new SSEClient("/api/v1/sse/prices.*", {
  last: 1,
  types: ["quote"],
  rate: 2,
  onOpen: ({ conflated, expires_in }) => console.log(conflated?.length, expires_in?.toFixed()),
  onEvent: ({ text, data }: { text: string; data: unknown }) => console.log(text.length, data),
});
new SSEClient("/api/v1/sse/prices", { since: new Date() });
new SSEClient("/api/v1/sse/prices", { token: { streamToken: async (channels: string[]) => channels.join() } });

interface Events {
  risk_alert: { severity: "low" | "high" };
  note: string;
}
const typed = new SSEClient<Events>("/api/v1/sse/alerts", {
  signal: new AbortController().signal,
  debug: (...what) => console.log(...what),
  onReconnect: ({ attempt, hint }) => console.log(attempt.toFixed(), hint?.length),
  onEvent(event) {
    if (event.type === "note") console.log(event.data.toUpperCase());
    else console.log(event.data.severity, event.data.timestamp);
    // @ts-expect-error there is no such type
    if (event.type === "nothing") console.log(event.id);
  },
});
const hear = ({ data, origin }: MessageEvent<string>) => console.log(data, origin);
const object = { handleEvent: (event: MessageEvent<string>) => console.log(event.lastEventId) };
typed.addEventListener("note", hear);
typed.removeEventListener("note", hear);
typed.addEventListener("note", object, { once: true });
typed.removeEventListener("note", object);
typed.removeEventListener("open", (event) => console.log(event.detail.retry));
typed.onerror = ({ detail }) => console.log(detail.reason, typed.readyState === SSEClient.CLOSED, typed.withCredentials);
typed.onmessage = hear;
const target: EventTarget = typed;
target.addEventListener("note", () => {});
// @ts-expect-error there is no such type of events
typed.addEventListener("nothing", hear);

const session = new Session("https://events.example", { onEnded: ({ reason, successor }) => console.log(reason, successor?.length) });
session.login("ann", "password").catch((error: SessionError) => console.log(error.status.toFixed(), error.code, error.retryAfter));
session.resume().then((resumed: boolean) => (resumed ? session.logout() : undefined));
session.fetch<{ id: string }>("/api/v1/sse/alerts", { body: { event: "note" } }).then(({ id }) => console.log(id));
session.addEventListener("change", () => console.log(session.username, session.grants.subscribe, session.channels));
new SSEClient("/api/v1/sse/prices", { token: session });
// @ts-expect-error where the refresh token is, is said or not
new Session("https://events.example", { cookie: "yes" });

// @ts-expect-error a stream begins at the one or the other
new SSEClient("/api/v1/sse/prices", { from: "here" });

configureSSE({ baseURL: "http://localhost:8000", token: "text" });
const { status, lastEvent, disconnect } = useSSE("/api/v1/sse/alerts", { maxRetries: 3 });
const text: string = `${status.value} ${lastEvent.value?.data.message}`;
const { alerts, unreadCount, markAsRead } = useRiskAlerts({ maxAlerts: 50 });
markAsRead(alerts.value[0].id);
const loss = useTrainingProgress().latest.value?.metrics?.loss;
const sharpe = useBacktestProgress().runs.get("b1")?.results?.sharpe_ratio;
const value = useDashboardUpdates().updates.metrics?.total_value;
console.log(text, unreadCount.value, loss, sharpe, value, disconnect);
// @ts-expect-error there is no such option
new SSEClient("/api/v1/sse/alerts", { chanels: "alerts" });
