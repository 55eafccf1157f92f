import type { EventOf, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

export { configureSSE } from "./stream-state.js";
export type { EventOf, Status, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

/** A readable store of Svelte. */
export interface SSEStore<Event> extends StreamControls {
  subscribe(run: (state: StreamState<Event>) => void): () => void;
  /** Lead it to another URL, or to other channels: what stays of these goes on without a gap. Without a URL it waits. */
  go(url: string | null | undefined, channels?: string | string[]): void;
}

/**
 * A stream as a readable store. It is open while it has subscribers, and resumes after the last event seen.
 *
 * `sseStore<Alert>(url)` says what the data of all events is, `sseStore<any, { risk_alert: Alert }>(url)` that of each type.
 */
export function sseStore<Data = any, Events extends object = Record<string, Data>>(
  url: string | null | undefined,
  options?: UseSSEOptions<EventOf<Events>>,
): SSEStore<EventOf<Events>>;
