/** What the server says when a stream opens. */
export interface Connected {
  client_id: string;
  channel: string;
  channels: string[];
  message: string;
  /** A position was given, and everything after it follows. */
  recovered: boolean;
  /** Milliseconds after which to come back. */
  retry: number;
  /** Seconds that the token is valid. */
  expires_in: number;
  timestamp: string;
}

/** A published event. */
export interface StreamEvent<Data = any> {
  /** Empty where the event is in no log: it is not replayed. */
  id: string;
  type: string;
  channel: string;
  data: Data & { channel: string; timestamp: string };
}

/** A channel that could not be continued without a gap: fetch its state afresh. */
export interface Reset {
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
   * "closed" by `close()`; "kicked" where an administrator has ended it, and a new login alone opens another at once;
   * "token", "status 403", …, or the reason of the last attempt after `maxRetries`.
   */
  reason: string;
  /** The HTTP status; 0 where there is none. */
  status: number;
}

export interface SSEClientOptions {
  /** Channels; without it they are the last part of the URL's path. */
  channels?: string | string[];
  /**
   * The stream token, or better a function that fetches one for these channels: called for every connection and
   * renewal. Where it throws an error with `status` 401 or 403 the client stops; after any other it tries again. The
   * server's `code` on the error tells a kick from a token that is not granted.
   */
  token?: string | ((channels: string[]) => string | Promise<string>);
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
