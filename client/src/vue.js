// Vue 3 composables on top of the client. All they start ends with the component, or effect scope, that called them.

import { SSEClient } from "@sse-app/client";
import { computed, onScopeDispose, getCurrentScope, reactive, ref, shallowRef } from "vue";

const defaults = {};

/** Sets what every `useSSE` takes where its own options say nothing: `baseURL`, `token`, and all the others. */
export function configureSSE(options) {
  Object.assign(defaults, options);
}

/** Puts the address of the API before a relative URL: the `baseURL` option, else Vite's, else the page's own. */
function absolute(url, baseURL) {
  const base = baseURL ?? import.meta.env?.VITE_API_BASE_URL ?? "";
  return /^https?:/.test(url) || !base ? url : `${base.replace(/\/+$/, "")}/${url.replace(/^\/+/, "")}`;
}

/** A stream as reactive state. `lastEvent` shows the last event of a burst; the `onEvent` option sees each. */
export function useSSE(url, options = {}) {
  const given = Object.entries({ ...defaults, ...options }).filter(([, value]) => value !== undefined);
  const { baseURL, autoConnect = true, ...settings } = Object.fromEntries(given);

  const status = ref("idle"); // idle, connecting, connected, reconnecting, closed or failed
  const error = shallowRef(null);
  const lastEvent = shallowRef(null);
  const lastEventId = ref("");
  const connectionCount = ref(0);
  const retryCount = ref(0);
  const listeners = [];
  let client = null;

  const hooks = {
    onOpen(info) {
      status.value = "connected";
      error.value = null;
      connectionCount.value += 1;
      retryCount.value = 0;
      lastEventId.value = client.lastEventId ?? "";
      settings.onOpen?.(info);
    },
    onEvent(event) {
      lastEvent.value = event;
      lastEventId.value = event.id;
      settings.onEvent?.(event);
    },
    onReconnect(detail) {
      status.value = "reconnecting";
      retryCount.value += 1;
      settings.onReconnect?.(detail);
    },
    onClose(detail) {
      const closed = detail.reason === "closed";
      status.value = closed ? "closed" : "failed";
      if (!closed) error.value = Object.assign(new Error(`the stream ended: ${detail.reason}`), detail);
      settings.onClose?.(detail);
    },
  };

  function connect() {
    if (typeof EventSource === "undefined") return; // rendered on a server
    if (!client) {
      client = new SSEClient(absolute(url, baseURL), { ...settings, ...hooks, autoConnect: false });
      for (const args of listeners) client.addEventListener(...args);
    }
    if (status.value === "connected") return;
    status.value = "connecting";
    client.connect();
  }

  function disconnect() {
    client?.close();
  }

  /** Forgets position, counts and error, and where it was running begins anew with what is new. */
  function reset() {
    const running = !["idle", "closed", "failed"].includes(status.value);
    disconnect();
    client?.reset();
    status.value = "idle";
    error.value = lastEvent.value = null;
    lastEventId.value = "";
    connectionCount.value = retryCount.value = 0;
    if (running) connect();
  }

  function addEventListener(...args) {
    listeners.push(args);
    client?.addEventListener(...args);
  }

  function removeEventListener(type, listener, ...rest) {
    const index = listeners.findIndex(([otherType, other]) => otherType === type && other === listener);
    if (index >= 0) listeners.splice(index, 1);
    client?.removeEventListener(type, listener, ...rest);
  }

  if (getCurrentScope()) onScopeDispose(disconnect);
  if (autoConnect) connect();
  return {
    isConnected: computed(() => status.value === "connected"),
    ...{ status, error, lastEvent, lastEventId, connectionCount, retryCount },
    ...{ connect, disconnect, reset, addEventListener, removeEventListener },
  };
}

/** Streams one channel's events of one type, and hands each to `take`. */
function useChannel(channel, type, options, take) {
  return useSSE(`/api/v1/sse/${channel}`, {
    ...options,
    events: [type],
    onEvent(event) {
      if (typeof event.data === "object" && event.data) take(event.data, event); // else it is none of these
      (options.onEvent ?? defaults.onEvent)?.(event);
    },
  });
}

/** Keeps the last event of each run by its id, the latest run last; no more than `maxRuns` (20). */
function useRuns(channel, type, idField, options) {
  const runs = reactive(new Map());
  const sse = useChannel(channel, type, options, (data) => {
    runs.delete(data[idField]);
    runs.set(data[idField], data);
    if (runs.size > (options.maxRuns ?? 20)) runs.delete(runs.keys().next().value);
  });
  const latest = computed(() => [...runs.values()].at(-1) ?? null);
  return { ...sse, runs, latest, progress: computed(() => latest.value?.progress ?? 0) };
}

/** The progress of model trainings: `runs` by task id, the `latest` of them, and its `progress` in percent. */
export function useTrainingProgress(options = {}) {
  return useRuns("training", "training_progress", "task_id", options);
}

/** The progress of backtests: `runs` by backtest id, the `latest` of them, and its `progress` in percent. */
export function useBacktestProgress(options = {}) {
  return useRuns("backtest", "backtest_progress", "backtest_id", options);
}

/** Risk alerts, the newest first and no more than `maxAlerts` (100), each read or not. */
export function useRiskAlerts(options = {}) {
  const alerts = ref([]);
  const sse = useChannel("alerts", "risk_alert", options, (data, { id }) => {
    alerts.value = [{ ...data, id, read: false }, ...alerts.value].slice(0, options.maxAlerts ?? 100);
  });
  const mark = (which) => {
    alerts.value = alerts.value.map((alert) => (which(alert) ? { ...alert, read: true } : alert));
  };
  return {
    ...sse,
    alerts,
    unreadCount: computed(() => alerts.value.filter((alert) => !alert.read).length),
    markAsRead: (id) => mark((alert) => alert.id === id),
    markAllAsRead: () => mark(() => true),
    clear: () => (alerts.value = []),
  };
}

/** Updates of the dashboard: the newest `data` of each `update_type`, and the `latest` of all. */
export function useDashboardUpdates(options = {}) {
  const updates = reactive({});
  const latest = shallowRef(null);
  const sse = useChannel("dashboard", "dashboard_update", options, (data) => {
    latest.value = data;
    updates[data.update_type] = data.data;
  });
  return { ...sse, updates, latest };
}
