import type { EventOf, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

export { configureSSE } from "./stream-state.js";
export type { EventOf, Status, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

/** A readable store of Svelte. */
export interface SSEStore<Event> extends StreamControls {
  subscribe(run: (state: StreamState<Event>) => void): () => void;
  /** Reopen it at another URL, or on other channels. Channels that are in both lose no event. Without a URL it waits. */
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
