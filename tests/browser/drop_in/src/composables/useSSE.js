// Composables as a front end has them that was written for a server without logins: an EventSource for each view, which is
// opened anew after an error, and begins with what is new then.

import { onMounted, onUnmounted, ref } from "vue";

const SERVER = new URLSearchParams(location.search).get("server");

function useSSE(url, { autoConnect = true } = {}) {
  const isConnected = ref(false);
  const error = ref(null);
  const lastEvent = ref(null);
  const handlers = new Map();
  let source = null;
  let timer = 0;

  function connect() {
    source = new EventSource(SERVER + url);
    source.onopen = () => {
      isConnected.value = true;
      error.value = null;
    };
    source.onerror = () => {
      source.close();
      isConnected.value = false;
      error.value = new Error("the connection failed");
      timer = setTimeout(connect, 1000);
    };
    handlers.forEach((handler, type) => source.addEventListener(type, handler));
  }

  function disconnect() {
    clearTimeout(timer);
    source?.close();
    isConnected.value = false;
  }

  function addEventListener(type, handler) {
    handlers.set(type, (event) => {
      const data = JSON.parse(event.data);
      lastEvent.value = { eventType: type, data, timestamp: new Date() };
      handler(data.update_type ? data : data.data || data);
    });
  }

  onMounted(() => autoConnect && connect());
  onUnmounted(disconnect);
  return { isConnected, error, lastEvent, connect, disconnect, addEventListener };
}

export function useDashboardSSE(options) {
  const metrics = ref({});
  const updateType = ref("");
  const lastUpdate = ref(null);
  const sse = useSSE("/api/v1/sse/dashboard", options);
  sse.addEventListener("dashboard_update", (update) => {
    updateType.value = update.update_type;
    metrics.value = update.data;
    lastUpdate.value = new Date();
  });
  return { ...sse, metrics, updateType, lastUpdate };
}

export function useAlertsSSE({ maxAlerts = 100, ...options } = {}) {
  const alerts = ref([]);
  const latestAlert = ref(null);
  const sse = useSSE("/api/v1/sse/alerts", options);
  sse.addEventListener("risk_alert", (alert) => {
    latestAlert.value = { ...alert, read: false };
    alerts.value = [latestAlert.value, ...alerts.value].slice(0, maxAlerts);
  });
  const clearAlerts = () => {
    alerts.value = [];
    latestAlert.value = null;
  };
  return { ...sse, alerts, latestAlert, clearAlerts };
}

function useRun(url, type, options) {
  const taskId = ref("");
  const progress = ref(0);
  const status = ref("");
  const message = ref("");
  const metrics = ref({});
  const currentDate = ref("");
  const results = ref({});
  const sse = useSSE(url, options);
  sse.addEventListener(type, (run) => {
    taskId.value = run.task_id ?? run.backtest_id;
    progress.value = run.progress ?? 0;
    status.value = run.status ?? "";
    message.value = run.message ?? "";
    metrics.value = run.metrics ?? {};
    currentDate.value = run.current_date ?? "";
    results.value = run.results ?? {};
  });
  return { ...sse, taskId, progress, status, message, metrics, currentDate, results };
}

export const useTrainingSSE = (options) => useRun("/api/v1/sse/training", "training_progress", options);
export const useBacktestSSE = (options) => useRun("/api/v1/sse/backtest", "backtest_progress", options);
