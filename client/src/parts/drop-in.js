// The composables of the service that came before, by the names that its views know. All of them are views of one
// stream of the application, which `configureSSE` sets up.

import { computed, getCurrentInstance, getCurrentScope, isRef, onMounted, onScopeDispose, ref, shallowRef, toValue, watch } from "vue";
import { Stream } from "./shared-stream.js";
import { complete, defaults, onConfigured, placeOf } from "./settings.js";

const TAKERS = ["onUpdate", "onMessage", "onProgress", "onAlert"]; // options that take what an event says
const IDS = ["taskId", "task_id", "backtestId", "backtest_id", "id"]; // options and members that name a run

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

const stream = new Stream(() => {
  const { baseURL, events, ...settings } = complete({}); // each view hears what it knows
  return { ...settings, url: placeOf("/api/v1/sse", [], baseURL).url };
});
onConfigured(() => stream.restart());

const told = new WeakSet();

/** Tells the application itself what the views are told, once for all of them. */
function tellOnce(callback, detail) {
  if (told.has(detail)) return;
  told.add(detail);
  defaults[callback]?.(detail);
}

/** Returns what an event is about: its data, or what an older service has put into that under `data`. */
function unwrap(data, names) {
  const has = (body) => names.some((name) => name in body);
  return isObject(data.data) && (has(data.data) || !has(data)) ? { timestamp: data.timestamp, ...data.data } : data;
}

/** Lets the handlers of older views, which look for everything in `data.data`, find it there. */
function wrap(data) {
  return "data" in data ? data : Object.defineProperty(data, "data", { value: data });
}

/**
 * One view of a channel: hands the events of a type to `take`, with the data as it came. It takes what the composables
 * of older views are given: nothing, options, or the id of a run first.
 */
function useView(channel, type, args, take, clear) {
  const isOptions = (given) => isObject(given) && !isRef(given);
  const options = args.find(isOptions) ?? {};
  const { autoConnect = true, onOpen, onError, onEvent, onReset } = options;
  const given = args.find((one) => one != null && !isOptions(one));
  const wantedId = () => `${toValue(given) ?? IDS.map((name) => toValue(options[name])).find((one) => one != null) ?? ""}`;

  const isConnected = ref(false);
  const error = shallowRef(null);
  const lastEvent = shallowRef(null);
  const connectionCount = ref(0);
  const retryCount = ref(0);
  const handlers = new Map();

  const fail = (text, detail) => {
    isConnected.value = false;
    error.value = Object.assign(new Error(text), detail);
    onError?.(error.value);
  };
  const hand = (name, data) => handlers.get(name)?.forEach((handler) => handler(data));

  const view = {
    channels: new Set([channel]),
    onOpen(info) {
      isConnected.value = true;
      error.value = null;
      connectionCount.value += 1;
      retryCount.value = 0;
      onOpen?.(info);
      hand("connected", info);
      tellOnce("onOpen", info);
    },
    onEvent(event) {
      const { data } = event;
      if (isObject(data)) {
        lastEvent.value = { eventType: event.type, data, timestamp: new Date() };
        const body = [type, "message"].includes(event.type) ? take(data, event, wantedId()) : null;
        if (body) for (const name of TAKERS) options[name]?.(body);
        hand(event.type, wrap(data));
      }
      onEvent?.(event);
      tellOnce("onEvent", event);
    },
    onReset(detail) {
      onReset?.(detail);
      tellOnce("onReset", detail);
    },
    onReconnect(detail) {
      retryCount.value += 1;
      fail(`connection lost: ${detail.reason}`, detail);
      tellOnce("onReconnect", detail);
    },
    onClose(detail) {
      fail(`the stream ended: ${detail.reason}`, detail);
      tellOnce("onClose", detail);
    },
  };

  function connect() {
    if (typeof document === "undefined") return; // rendered on a server
    stream.join(view);
  }

  function disconnect() {
    stream.leave(view);
    isConnected.value = false;
    retryCount.value = 0;
  }

  function reset() {
    disconnect();
    error.value = null;
    if (autoConnect) connect();
  }

  function addEventListener(name, handler) {
    if (!handlers.has(name)) handlers.set(name, new Set());
    handlers.get(name).add(handler);
  }

  function removeEventListener(name, handler) {
    if (handler) handlers.get(name)?.delete(handler);
    else handlers.delete(name);
  }

  watch(wantedId, clear);
  if (getCurrentScope()) onScopeDispose(disconnect);
  if (autoConnect) getCurrentInstance() ? onMounted(connect) : connect();
  return {
    ...{ isConnected, error, lastEvent, connectionCount, retryCount },
    ...{ connect, disconnect, reset, addEventListener, removeEventListener },
  };
}

/** Updates of the dashboard: the newest metrics, of which type they are, and when they came. */
export function useDashboardSSE(...args) {
  const metrics = ref({});
  const updateType = ref("");
  const lastUpdate = ref(null);
  const clear = () => {
    metrics.value = {};
    updateType.value = "";
    lastUpdate.value = null;
  };
  const take = (data) => {
    const { update_type, type, channel, timestamp, data: inner, ...rest } = unwrap(data, ["update_type"]);
    updateType.value = update_type ?? data.type ?? "";
    metrics.value = inner ?? rest;
    lastUpdate.value = new Date();
    return { update_type: updateType.value, data: metrics.value };
  };
  return { ...useView("dashboard", "dashboard_update", args, take, clear), metrics, updateType, lastUpdate };
}

/** Risk alerts, the newest first and no more than the option `maxAlerts` (100), each read or not. */
export function useAlertsSSE(...args) {
  const alerts = ref([]);
  const latestAlert = ref(null);
  const most = args.find(isObject)?.maxAlerts ?? 100;
  const clearAlerts = () => {
    alerts.value = [];
    latestAlert.value = null;
  };
  const take = (data, { id }) => {
    const alert = { ...unwrap(data, ["severity", "message"]), id: id || `alert-${Math.random().toString(36).slice(2)}`, read: false };
    alerts.value = [alert, ...alerts.value].slice(0, most);
    latestAlert.value = alerts.value[0];
    return alert;
  };
  const mark = (which) => alerts.value.filter(which).forEach((alert) => (alert.read = true));
  return {
    ...useView("alerts", "risk_alert", args, take, () => {}),
    ...{ alerts, latestAlert, clearAlerts },
    unreadCount: computed(() => alerts.value.filter((alert) => !alert.read).length),
    markAsRead: (id) => mark((alert) => alert.id === id),
    markAllAsRead: () => mark(() => true),
  };
}

/** A view of runs: shows the last event of any run, or of the one whose id is given. */
function useRun(channel, type, args, fields) {
  const taskId = ref("");
  const state = Object.fromEntries(Object.entries(fields).map(([name, [, first]]) => [name, ref(first)]));
  const clear = () => {
    taskId.value = "";
    for (const [name, [, first]] of Object.entries(fields)) state[name].value = first;
  };
  const take = (data, event, wanted) => {
    const body = unwrap(data, ["task_id", "backtest_id", "progress"]);
    const id = IDS.map((name) => body[name]).find((one) => one != null) ?? "";
    if (wanted && wanted !== `${id}`) return null; // of another run
    taskId.value = id;
    for (const [name, [member, first]] of Object.entries(fields)) state[name].value = body[member] ?? first;
    return body;
  };
  return { ...useView(channel, type, args, take, clear), taskId, ...state };
}

const RUN = { progress: ["progress", 0], status: ["status", ""], message: ["message", ""], metrics: ["metrics", {}] };

/** The progress of trainings, or of the one whose id is given, as a text or a ref. */
export function useTrainingSSE(...args) {
  return useRun("training", "training_progress", args, RUN);
}

/** The progress of backtests, or of the one whose id is given, as a text or a ref. */
export function useBacktestSSE(...args) {
  const fields = { ...RUN, currentDate: ["current_date", ""], results: ["results", {}] };
  const run = useRun("backtest", "backtest_progress", args, fields);
  return { ...run, backtestId: run.taskId };
}
