// What the bindings for Vue, React and Svelte have in common.
import type { Close, SSEClient, SSEClientOptions, StreamEvent } from "@sse-app/client";
export type { EventOf } from "@sse-app/client";

export interface UseSSEOptions<Event = StreamEvent> extends Omit<SSEClientOptions, "onEvent"> {
  /** The address of the API, put before relative URLs; default `VITE_API_BASE_URL`, else the page's own origin. */
  baseURL?: string;
  /** Sees each event. */
  onEvent?: (event: Event) => void;
}

export type Status = "idle" | "connecting" | "connected" | "reconnecting" | "closed" | "failed";

export interface StreamState<Event = StreamEvent> {
  isConnected: boolean;
  status: Status;
  /** Why the stream is over. */
  error: (Error & Close) | null;
  /** Only the last of a burst: `onEvent` sees each. */
  lastEvent: Event | null;
  lastEventId: string;
  /** How often it has opened. */
  connectionCount: number;
  /** Attempts since it was last open. */
  retryCount: number;
}

export interface StreamControls {
  connect(): void;
  disconnect(): void;
  /** Forget position, counts and error; where it was running, begin anew with what is new. */
  reset(): void;
  addEventListener: SSEClient["addEventListener"];
  removeEventListener: SSEClient["removeEventListener"];
}

/** Set what every stream takes where its own options say nothing. */
export function configureSSE(options: UseSSEOptions): void;
