/** What a user may do: channels, or patterns of them. */
export interface Grants {
  subscribe: string[];
  publish: string[];
  admin: boolean;
  /** Channels of which the user may ask who listens. */
  presence?: string[];
}

/** A login is over. */
export interface Ended {
  /**
   * "logout": here or in another tab. "user": another user has logged in, and the cookie is theirs. "expired": the
   * server takes the login no more: it is too old, or was revoked.
   */
  reason: "logout" | "user" | "expired";
  /** Whose login it was. */
  username: string;
  /** The user who has logged in instead, where that is the reason. */
  successor?: string;
}

export interface SessionOptions {
  /**
   * Called once when a login is over, and the user has to log in again; never for a failure of the network or of the
   * server. A `resume` that finds the login over calls it, too.
   */
  onEnded?: (detail: Ended) => void;
  /**
   * Where the refresh token is: in a cookie that no script can read (true), or in this page's memory (false). Without
   * it: a cookie where page and server are of one site and the browser keeps it, else in memory.
   */
  cookie?: boolean;
}

export interface SessionRequest {
  /** Without it POST where there is a body, else GET. */
  method?: string;
  /** A text is sent as it is, anything else as JSON. */
  body?: unknown;
  /** What is undefined or empty is left out. */
  query?: Record<string, string | number | boolean | undefined>;
  signal?: AbortSignal;
}

/** A request had no success. */
export class SessionError extends Error {
  /** The HTTP status; 0 where the server could not be reached. */
  readonly status: number;
  /** The server's code, "invalid_credentials" for instance; "logged_out" where no user is logged in; or empty. */
  readonly code: string;
  /** Seconds that the server asks to wait; 0 where it does not. */
  readonly retryAfter: number;
}

/**
 * A login at a server. It replaces its tokens in time, so it lasts for as long as the server allows. It is what
 * `SSEClient` takes as `token`. It fires "change" when another user, or none, is logged in.
 */
export class Session extends EventTarget {
  /**
   * @param server its address, with the path where it is not at the root; without it, that of the page.
   */
  constructor(server?: string | URL, options?: SessionOptions);
  /** The user who is logged in, or empty. */
  readonly username: string;
  /** The channels that the user may read, of those that the server's settings name. */
  readonly channels: string[];
  readonly grants: Grants;
  /** Log in with a password; another login that there was is ended. Throws a `SessionError` with status 401 where they do not fit. */
  login(username: string, password: string): Promise<void>;
  /**
   * Continue the login of an earlier page load, where it is a cookie; false where there is none. Throws a `SessionError`
   * where the server cannot tell just now.
   */
  resume(): Promise<boolean>;
  /** Get a stream token for these channels. */
  streamToken(channels: Iterable<string>): Promise<string>;
  /**
   * Send a request to the server as the user.
   * @param path from the server's address on, as "/api/v1/sse/alerts/history"
   * @returns what it answers: a JSON value, a text, or null where there is nothing
   */
  fetch<Answer = any>(path: string, request?: SessionRequest): Promise<Answer>;
  /**
   * Log out, here and in the user's other tabs. Throws a `SessionError` where the server could not be told; the tokens are
   * forgotten all the same.
   */
  logout(): Promise<void>;
}
