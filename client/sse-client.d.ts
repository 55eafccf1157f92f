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
  /** "lost", "stalled", "timeout", "offline", "unreachable", "token", "renewal", "user", "status 503" or as the server says. */
  reason: string;
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

export interface SSEClientOptions {
  /** Channels, and patterns such as `training.*`; without it they are the last part of the URL's path. */
  channels?: string | string[];
  /**
   * The stream token, or better a function that fetches one for these channels, or an object with a method
   * `streamToken` that does, such as a `Session`: called for every connection and renewal. Where it throws an error with `status` 401 or 403 the client stops; after any other it tries again. The
   * server's `code` on the error tells a kick from a token that is not granted.
   */
  token?: string | TokenFunction | { streamToken: TokenFunction };
  /**
   * Where the stream begins without a position, as at the first connection: with all that is kept, or with what is new
   * (the default). At most one of `from`, `last` and `since`; with one of them the connection is not shared.
   */
  from?: "earliest" | "latest";
  /** Begin with the last so many events of each channel; of a conflated one, with the newest of each key. */
  last?: number;
  /** Begin with the events of a time or later; a number is seconds ago. */
  since?: Date | string | number;
  /** Event types that the server sends, in place of all; they are also the default of `events`. */
  types?: string | string[];
  /** Of conflated channels at most so many events of each key a second. */
  rate?: number;
  /** A label of this client; one is made up where absent. */
  clientId?: string;
  /** The types of events to hear, for `EventSource` has no wildcard. `addEventListener` adds to them. */
  events?: string[];
  /**
   * Share one connection among the tabs of this browser that have the same URL and user, who is read from the token:
   * true is the default; a text of your own parts them further, and is needed where a token cannot be read; false keeps
   * a connection of its own.
   */
  share?: boolean | string;
  /** Keep the position over page loads, in sessionStorage; a text names the key. */
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
  onOpen?: (info: Connected) => void;
  onEvent?: (event: StreamEvent) => void;
  onReset?: (reset: Reset) => void;
  onReconnect?: (detail: Reconnect) => void;
  onClose?: (detail: Close) => void;
}

interface Lifecycle {
  open: CustomEvent<Connected>;
  reset: CustomEvent<Reset>;
  /** Lost (`readyState` is CONNECTING) or over (CLOSED). */
  error: CustomEvent<Reconnect | Close>;
}

/** An event stream that always comes back, misses nothing and gets nothing twice. */
export class SSEClient extends EventTarget {
  constructor(url: string | URL, options?: SSEClientOptions);
  /** As of an EventSource: 0 connecting or waiting, 1 open, 2 closed. */
  readonly readyState: 0 | 1 | 2;
  /** The id of the last event seen, which the next connection resumes after. */
  readonly lastEventId: string | undefined;
  /** The stream's address, without the token. */
  readonly url: string;
  /** Start, or start again after an end; while it waits to reconnect, do so now. */
  connect(): void;
  /** End; nothing is left running. */
  close(): void;
  /** Forget the position. */
  reset(): void;
  addEventListener<Type extends keyof Lifecycle>(
    type: Type,
    listener: (event: Lifecycle[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /** Published events come as an EventSource fires them: `data` is the text. */
  addEventListener(
    type: string,
    listener: ((event: MessageEvent<string>) => void) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}
