/** What the server says when a stream opens. */
export interface Connected {
  client_id: string;
  channel: string;
  /** The channels and patterns that it carries. */
  channels: string[];
  /** Those of them of which a stream that is behind gets only the newest event of each key. */
  conflated?: string[];
  message: string;
  /** A position was given, and everything after it follows. */
  recovered: boolean;
  /** Milliseconds after which to come back. */
  retry: number;
  /** Seconds that the token is valid; null without one. */
  expires_in: number | null;
  timestamp: string;
}

/** A published event. */
export interface StreamEvent<Data = any> {
  /** Empty where the event is in no log: it is not replayed. */
  id: string;
  type: string;
  /** Empty where it cannot be told: of several channels, or by a pattern, and the data is no object. */
  channel: string;
  /** The JSON value that was published, an object with its channel and time; or the text, where that is no JSON. */
  data: Data extends object ? Data & { channel: string; timestamp: string } : Data;
  /** The same as it came. */
  text: string;
}

/** The events of a map from types to data: `event.type` tells which data it is. */
export type EventOf<Events> = {
  [Type in keyof Events & string]: StreamEvent<Events[Type]> & { type: Type };
}[keyof Events & string];

/** A channel that could not be continued without a gap: fetch its state afresh. */
export interface Reset {
  /** Or the pattern, where it is every channel of it. */
  channel: string;
  reason: string;
}

/** The connection is lost; the client reconnects. */
export interface Reconnect {
  /** Milliseconds until the next attempt. */
  delay: number;
  /**
   * "lost", "stalled", "timeout", "offline", "unreachable", "token", "renewal", "user", "restart", "status 503" or as the
   * server says.
   */
  reason: string;
  /** Which attempt in a row the next one is, from 1. */
  attempt: number;
  /**
   * Where a page has never reached a server of another origin: what it probably is and what to do about it, from the
   * second attempt on. The same is said once on the console.
   */
  hint?: string;
}

/** The stream is over: it was closed, or is refused for good. */
export interface Close {
  /**
   * "closed" by `close()`; "ended" where all channels have come to their end; "kicked" where an administrator has ended it, and a new login alone opens another at once;
   * "token", "status 403", …, or the reason of the last attempt after `maxRetries`.
   */
  reason: string;
  /** The HTTP status; 0 where there is none. */
  status: number;
}

export type TokenFunction = (channels: string[]) => string | Promise<string>;

export interface SSEClientOptions<Events = Record<string, any>> {
  /** Channels, and patterns such as `training.*`; without it they are the last part of the URL's path. */
  channels?: string | string[];
  /**
   * The stream token, or better a function that fetches one for these channels, or an object with a method
   * `streamToken` that does, such as a `Session`: called for every connection and renewal. Where it throws an error with `status` 401 or 403 the client stops, also at a renewal; after any other it
   * tries again, and not before `retryAfter` seconds where the error has them. The server's `code` on the error tells a
   * kick from a token that is not granted.
   */
  token?: string | TokenFunction | { streamToken: TokenFunction };
  /**
   * Where the stream begins without a position, as at the first connection: with all that is kept, or with what is new
   * (the default). At most one of `from`, `last` and `since`; with one of them the connection is not shared.
   */
  from?: "earliest" | "latest";
  /** Begin with the last so many events of each channel, of the `types`; of a conflated one, with the newest of each key. */
  last?: number;
  /** Begin with the events of a time or later; a number is seconds ago. */
  since?: Date | string | number;
  /** Event types that the server sends, in place of all. */
  types?: string | string[];
  /** Of conflated channels at most so many events of each key a second. */
  rate?: number;
  /** A label of this client; one is made up where absent. */
  clientId?: string;
  /** The types of events that `onEvent` hears, in place of all; `addEventListener` adds to them. */
  events?: string[];
  /**
   * Share one connection among the tabs of this browser that have the same URL and user, who is read from the token:
   * true is the default; a text of your own parts them further, and is needed where a token cannot be read; false keeps
   * a connection of its own.
   */
  share?: boolean | string;
  /** Keep the position over page loads, in sessionStorage, from which the first `connect` takes it; a text names the key. */
  persist?: boolean | string;
  /** Connect at once. Default true. */
  autoConnect?: boolean;
  /** Milliseconds from which the backoff grows, until the server says its own. Default 1000. */
  reconnectDelay?: number;
  /** Milliseconds at most between attempts, unless the server asks for more. Default 30000. */
  maxReconnectDelay?: number;
  /** Attempts in a row after which the client stops. Default: never. */
  maxRetries?: number;
  /** Milliseconds between pings until they are learned. Default 30000. */
  pingInterval?: number;
  /** Milliseconds for the token and the connection. Default 15000. */
  connectTimeout?: number;
  /** Send cookies to another origin. Default false. */
  withCredentials?: boolean;
  /** Closes the client for good when it is aborted. */
  signal?: AbortSignal;
  /** Say each step with `console.debug`, or with a function of your own. Tokens are never among it. */
  debug?: boolean | ((...what: any[]) => void);
  onOpen?: (info: Connected) => void;
  onEvent?: (event: EventOf<Events>) => void;
  onReset?: (reset: Reset) => void;
  onReconnect?: (detail: Reconnect) => void;
  onClose?: (detail: Close) => void;
}

/** An event of the client itself; it has the same as the callback gets. */
export interface DetailEvent<Detail> extends Event {
  readonly detail: Detail;
}

interface Lifecycle {
  open: DetailEvent<Connected>;
  reset: DetailEvent<Reset>;
  /** Lost (`readyState` is CONNECTING) or over (CLOSED). */
  error: DetailEvent<Reconnect | Close>;
}

type Listener<Event> = ((event: Event) => void) | { handleEvent(event: Event): void } | null;

/**
 * An event stream that always comes back, misses nothing and gets nothing twice. Beside what is here it has what an
 * EventSource has, and behaves as one. `Events` is a map from the types of events to their data.
 */
export class SSEClient<Events = Record<string, any>> extends EventTarget {
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSED: 2;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSED: 2;
  /**
   * @throws DOMException "SyntaxError": it is no URL. One that is not absolute needs a page to belong to; elsewhere it is
   *   refused by `connect`, so that a server can render a page with it.
   */
  constructor(url: string | URL, options?: SSEClientOptions<Events>);
  /** Connecting or waiting, open, or closed. */
  readonly readyState: 0 | 1 | 2;
  /** The id of the last event seen, which the next connection resumes after. */
  readonly lastEventId: string | undefined;
  /** The stream's address, without the token. */
  readonly url: string;
  readonly withCredentials: boolean;
  onopen: ((event: DetailEvent<Connected>) => void) | null;
  onmessage: ((event: MessageEvent<string>) => void) | null;
  onerror: ((event: DetailEvent<Reconnect | Close>) => void) | null;
  /** Start, or start again after an end; while it waits to reconnect, do so now. */
  connect(): void;
  /** Give up the connection that there is, and open a new one after the last event seen, with a fresh token. */
  restart(): void;
  /** End; nothing is left running. */
  close(): void;
  /** Forget the position. */
  reset(): void;
  addEventListener<Type extends keyof Lifecycle>(
    type: Type,
    listener: Listener<Lifecycle[Type]>,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /** Published events come as an EventSource fires them: `data` is the text. */
  addEventListener(
    type: keyof Events & string,
    listener: Listener<MessageEvent<string>>,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof Lifecycle>(
    type: Type,
    listener: Listener<Lifecycle[Type]>,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: keyof Events & string,
    listener: Listener<MessageEvent<string>>,
    options?: boolean | EventListenerOptions,
  ): void;
}
