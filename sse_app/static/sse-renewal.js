// Renews the token of a stream while that is open. Loaded once a stream with a token that expires is open.

const SHORT = 1000; // ms; no timer is shorter
const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once

/**
 * Renews the token of a connection in time, and the next one's, until the signal. Where that is refused the connection
 * is replaced.
 * @param {import("./sse-connection.js").Connection} connection
 * @param {number} end when its token expires, by the clock of `performance.now()`
 * @param {AbortSignal} signal of this connection's end
 */
export function keepRenewed(connection, end, signal) {
  const left = end - performance.now();
  if (left <= 0 || signal.aborted) return; // it has ended while this was loaded
  // Well before it expires, and at a random moment so that clients spread.
  const delay = Math.max(SHORT, left * (0.5 + 0.25 * Math.random()));
  const timer = setTimeout(() => renew(connection, end, signal), Math.min(delay, LONGEST));
  signal.addEventListener("abort", () => clearTimeout(timer));
}

async function renew(connection, end, signal) {
  let token, answer, body;
  try {
    token = await connection.fetchToken();
    if (signal.aborted) return;
    const headers = { Authorization: `Bearer ${token}` };
    answer = await connection.fetch(`/connections/${connection.info.client_id}/renew`, { method: "POST", headers, signal });
    body = await answer.json();
  } catch (error) {
    // Not reached: there is time to try again, and where there is none the server says `closing`.
    if (signal.aborted || (!token && connection.isOver(error))) return;
  }
  if (signal.aborted) return;
  const { status, ok } = answer ?? {};
  const seconds = ok ? body?.expires_in : null;
  if (status === 403 || status === 404) connection.replace("renewal", token);
  else if (!ok) keepRenewed(connection, end, signal);
  else if (Number.isFinite(seconds)) keepRenewed(connection, performance.now() + seconds * 1000, signal);
}
