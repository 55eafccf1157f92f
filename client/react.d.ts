import type { EventOf, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

export { configureSSE } from "./stream-state.js";
export type { EventOf, Status, StreamControls, StreamState, UseSSEOptions } from "./stream-state.js";

export type UseSSE<Event> = StreamState<Event> & StreamControls;

/**
 * A stream as state, ended with the component that uses it. Another URL, or other channels, reopen it there. Channels that
 * are in both lose no event. Without a URL it waits for one.
 *
 * `useSSE<Alert>(url)` says what the data of all events is, `useSSE<any, { risk_alert: Alert }>(url)` that of each type.
 */
export function useSSE<Data = any, Events extends object = Record<string, Data>>(
  url: string | null | undefined,
  options?: UseSSEOptions<EventOf<Events>>,
): UseSSE<EventOf<Events>>;
