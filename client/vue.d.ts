import type { ComputedRef, Ref, ShallowRef } from "vue";
import type { Close, SSEClient, SSEClientOptions, StreamEvent } from "./sse-client.js";

export interface UseSSEOptions extends SSEClientOptions {
  /** The address of the API, put before relative URLs; default `VITE_API_BASE_URL`, else the page's own origin. */
  baseURL?: string;
}

export type Status = "idle" | "connecting" | "connected" | "reconnecting" | "closed" | "failed";

export interface UseSSE {
  isConnected: ComputedRef<boolean>;
  status: Ref<Status>;
  /** Why the stream is over. */
  error: ShallowRef<(Error & Close) | null>;
  /** Only the last of a burst: `onEvent` sees each. */
  lastEvent: ShallowRef<StreamEvent | null>;
  lastEventId: Ref<string>;
  /** How often it has opened. */
  connectionCount: Ref<number>;
  /** Attempts since it was last open. */
  retryCount: Ref<number>;
  connect(): void;
  disconnect(): void;
  /** Forget position, counts and error; where it was running, begin anew with what is new. */
  reset(): void;
  addEventListener: SSEClient["addEventListener"];
  removeEventListener: SSEClient["removeEventListener"];
}

/** Set what every `useSSE` takes where its own options say nothing. */
export function configureSSE(options: UseSSEOptions): void;

/** A stream as reactive state, ended with the component or effect scope that called this. */
export function useSSE(url: string, options?: UseSSEOptions): UseSSE;

export interface Run {
  progress: number;
  status: "started" | "running" | "completed" | "failed" | (string & {});
  message?: string;
  channel: string;
  timestamp: string;
}

export interface TrainingRun extends Run {
  task_id: string;
  metrics?: Record<string, number>;
}

export interface BacktestRun extends Run {
  backtest_id: string;
  current_date?: string;
  results?: Record<string, number>;
}

export interface UseRuns<R extends Run> extends UseSSE {
  /** The last event of each run by its id, the latest run last. */
  runs: Map<string, R>;
  latest: ComputedRef<R | null>;
  /** Percent of the latest run. */
  progress: ComputedRef<number>;
}

export function useTrainingProgress(options?: UseSSEOptions & { maxRuns?: number }): UseRuns<TrainingRun>;
export function useBacktestProgress(options?: UseSSEOptions & { maxRuns?: number }): UseRuns<BacktestRun>;

export interface RiskAlert {
  id: string;
  read: boolean;
  severity?: string;
  message?: string;
  channel: string;
  timestamp: string;
  [field: string]: unknown;
}

export interface UseRiskAlerts extends UseSSE {
  /** The newest first. */
  alerts: Ref<RiskAlert[]>;
  unreadCount: ComputedRef<number>;
  markAsRead(id: string): void;
  markAllAsRead(): void;
  clear(): void;
}

export function useRiskAlerts(options?: UseSSEOptions & { maxAlerts?: number }): UseRiskAlerts;

export interface UseDashboardUpdates extends UseSSE {
  /** The newest data of each update type. */
  updates: Record<string, any>;
  latest: ShallowRef<Record<string, any> | null>;
}

export function useDashboardUpdates(options?: UseSSEOptions): UseDashboardUpdates;
