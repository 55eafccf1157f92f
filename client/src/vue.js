// Vue 3 composables on top of the client. All they start ends with the component, or effect scope, that called them.

import { computed, getCurrentInstance, getCurrentScope, onMounted, onScopeDispose, reactive, ref, shallowRef, toValue, watch } from "vue";
import { StreamState, INITIAL } from "./parts/stream-state.js";
import { defaults } from "./parts/settings.js";

export { configureSSE } from "./parts/settings.js";
export { useAlertsSSE, useBacktestSSE, useDashboardSSE, useTrainingSSE } from "./parts/drop-in.js";

/**
 * A stream as reactive state. `lastEvent` shows the last event of a burst; the `onEvent` option sees each. The URL and
 * the option `channels` may be refs or getters.
 */
export function useSSE(url, { channels, ...options } = {}) {
  const refs = Object.fromEntries(Object.entries(INITIAL).map(([name, value]) => [name, shallowRef(value)]));
  const publish = (changes) => Object.keys(changes).forEach((name) => (refs[name].value = changes[name]));
  const followed = new StreamState(() => options, publish);
  const target = () => [toValue(url), toValue(channels)];

  followed.go(...target());
  watch(() => target().join(), () => followed.go(...target()));
  if (getCurrentScope()) onScopeDispose(() => followed.disconnect());
  const { autoConnect = defaults.autoConnect ?? true } = options;
  if (autoConnect) getCurrentInstance() ? onMounted(() => followed.connect()) : followed.connect();
  return { ...refs, ...followed.controls };
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
