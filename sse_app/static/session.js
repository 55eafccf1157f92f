// The login of the pages, with what they ask for again and again.

import { Session as Login, SessionError } from "./sse-session.js";

export { SessionError as ApiError };

/** A login at the server that the page is from. */
export class Session extends Login {
  /** @param {(detail: {reason: string, username: string, successor?: string}) => void} onEnded */
  constructor(onEnded) {
    super("", { onEnded });
  }

  /**
   * Gets the last events of a channel, oldest first, or the first ones after a position.
   * @returns {Promise<{id: string, channel: string, event: string, data: object}[]>}
   */
  async history(channel, limit, after) {
    return (await this.fetch(`/api/v1/sse/${encodeURIComponent(channel)}/history`, { query: { limit, after } })).events;
  }

  /**
   * Sends a request as the user who is logged in.
   * @param {string} path
   * @param {{query?: object, body?: object, signal?: AbortSignal}} [options] with a body it is a POST, else a GET
   */
  request(path, options) {
    return this.fetch(path, options);
  }
}
