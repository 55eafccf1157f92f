import type { ComputedRef, MaybeRefOrGetter, Ref, ShallowRef } from "vue";
import type { Close, Connected, StreamEvent } from "@sse-app/client";
import type { EventOf, StreamControls, StreamState, UseSSEOptions as Options } from "./stream-state.js";

export { configureSSE } from "./stream-state.js";
export type { EventOf, Status, StreamControls, StreamState } from "./stream-state.js";

export interface UseSSEOptions<Event = StreamEvent> extends Omit<Options<Event>, "channels"> {
  /** Channels, and patterns of them. When they change, those that are in both lose no event. */
  channels?: MaybeRefOrGetter<string | string[] | null | undefined>;
}

export type UseSSE<Event = StreamEvent> = {
  [Name in keyof StreamState<Event>]: ShallowRef<StreamState<Event>[Name]>;
} & StreamControls;

/**
 * A stream as reactive state, ended with the component or effect scope that called this. The URL may be a ref or a getter;
 * without one it waits.
 *
 * `useSSE<Alert>(url)` says what the data of all events is, `useSSE<any, { risk_alert: Alert }>(url)` that of each type.
 */
export function useSSE<Data = any, Events extends object = Record<string, Data>>(
  url: MaybeRefOrGetter<string | null | undefined>,
  options?: UseSSEOptions<EventOf<Events>>,
): UseSSE<EventOf<Events>>;

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

export type UseRuns<R extends Run> = UseSSE & {
  /** The last event of each run by its id, the latest run last. */
  runs: Map<string, R>;
  latest: ComputedRef<R | null>;
  /** Percent of the latest run. */
  progress: ComputedRef<number>;
};

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

export type UseRiskAlerts = UseSSE & {
  /** The newest first. */
  alerts: Ref<RiskAlert[]>;
  unreadCount: ComputedRef<number>;
  markAsRead(id: string): void;
  markAllAsRead(): void;
  clear(): void;
};

export function useRiskAlerts(options?: UseSSEOptions & { maxAlerts?: number }): UseRiskAlerts;

export type UseDashboardUpdates = UseSSE & {
  /** The newest data of each update type. */
  updates: Record<string, any>;
  latest: ShallowRef<Record<string, any> | null>;
};

export function useDashboardUpdates(options?: UseSSEOptions): UseDashboardUpdates;

/** What the views of an older service hand to its composables. */
export interface ViewOptions {
  /** Connect at once. Default true. */
  autoConnect?: boolean;
  /** Takes what each event of this view says; the other three are names for the same. */
  onUpdate?: (body: any) => void;
  onMessage?: (body: any) => void;
  onProgress?: (body: any) => void;
  onAlert?: (body: any) => void;
  onOpen?: (info: Connected) => void;
  /** The connection is lost, or the stream over. */
  onError?: (error: Error) => void;
  onEvent?: (event: StreamEvent) => void;
  onReset?: (reset: { channel: string; reason: string }) => void;
  /** What else older views hand over, such as a client id, is of no effect. */
  [option: string]: unknown;
}

/** The id of one run, whose view leaves out the others; all are shown while it is empty. */
export type RunId = MaybeRefOrGetter<string | number | null | undefined>;

export interface RunOptions extends ViewOptions {
  taskId?: RunId;
  backtestId?: RunId;
}

/** What each of the views below has. All of them share one stream of the application, which `configureSSE` sets up. */
export interface View {
  isConnected: Ref<boolean>;
  /** Why it is not connected. */
  error: ShallowRef<(Error & Partial<Close>) | null>;
  lastEvent: ShallowRef<{ eventType: string; data: any; timestamp: Date } | null>;
  connectionCount: Ref<number>;
  retryCount: Ref<number>;
  /** Connect; a view that was disconnected begins with what is new. */
  connect(): void;
  disconnect(): void;
  reset(): void;
  /** Hear events of a type on this view's channel: the handler takes their data. */
  addEventListener(type: string, handler: (data: any) => void): void;
  removeEventListener(type: string, handler?: (data: any) => void): void;
}

export interface DashboardView extends View {
  metrics: Ref<Record<string, any>>;
  updateType: Ref<string>;
  lastUpdate: Ref<Date | null>;
}

export interface AlertsView extends View {
  /** The newest first. */
  alerts: Ref<RiskAlert[]>;
  latestAlert: Ref<RiskAlert | null>;
  unreadCount: ComputedRef<number>;
  clearAlerts(): void;
  markAsRead(id: string): void;
  markAllAsRead(): void;
}

export interface TrainingView extends View {
  taskId: Ref<string>;
  /** Percent. */
  progress: Ref<number>;
  status: Ref<string>;
  message: Ref<string>;
  metrics: Ref<Record<string, any>>;
}

export interface BacktestView extends TrainingView {
  backtestId: Ref<string>;
  currentDate: Ref<string>;
  results: Ref<Record<string, any>>;
}

export function useDashboardSSE(options?: ViewOptions): DashboardView;
export function useAlertsSSE(options?: ViewOptions & { maxAlerts?: number }): AlertsView;
export function useTrainingSSE(options?: RunOptions): TrainingView;
export function useTrainingSSE(taskId: RunId, options?: RunOptions): TrainingView;
export function useBacktestSSE(options?: RunOptions): BacktestView;
export function useBacktestSSE(backtestId: RunId, options?: RunOptions): BacktestView;
