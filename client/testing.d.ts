/** What a client asked for a stream with. */
export interface StreamRequest {
  channels: Set<string>;
  token: string;
  /** Where it resumes, or empty. */
  lastEventId: string;
  query: URLSearchParams;
}

export interface FakeServerOptions {
  /** The address whose requests it answers; others go where they went before. Default "http://localhost:8000". */
  url?: string;
  /** Open each stream at once, without `connect`. Default false: a client waits until the test says what it gets. */
  accepts?: boolean;
}

/**
 * A server that is not there. It takes the place of `fetch` until `close`, opens no port and sets no timer. What it does
 * to clients is a promise, which resolves once they have taken it in.
 */
export interface FakeServer {
  /** The address that clients are given. */
  readonly url: string;
  /** What streams were asked for, the newest last. */
  readonly requests: StreamRequest[];
  /** How many streams are open. */
  readonly connections: number;
  /** How many tokens were renewed in place. */
  readonly renewals: number;
  /** The id of the last event, or of where there was none yet. */
  readonly lastEventId: string;
  /** Open the streams that are asked for, or else the next one: with what it has missed. */
  connect(): Promise<void>;
  /** Answer the streams that are asked for, or else the next one, with a status. */
  refuse(status: number, detail?: { code?: string; retryAfter?: number }): Promise<void>;
  /**
   * Publish an event, and return its id. Clients that are not connected get it later; not so with the id "". The channel may
   * be left out where the open streams have one only.
   */
  emit(type: string, data?: unknown, detail?: { channel?: string; id?: string }): Promise<string>;
  ping(): Promise<void>;
  /** Say that a channel could not be continued without a gap. */
  reset(channel: string, reason?: string): Promise<void>;
  /** Cut all connections. Clients come back after a millisecond. */
  drop(): Promise<void>;
  /** End all streams as where their tokens have expired. */
  expire(): Promise<void>;
  /** End all streams for a reason, such as "kicked" or "shutdown"; clients may come back after `retry` milliseconds. */
  end(reason: string, retry?: number | null): Promise<void>;
  /** End it, and put `fetch` back in its place. */
  close(): void;
}

export function fakeServer(options?: FakeServerOptions): FakeServer;
