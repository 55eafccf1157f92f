// What probably keeps a page from a server of another origin. A browser tells a page nothing of that, so this tries it
// out; it is loaded once a page has failed to reach its server.

const PATIENCE = 3000; // ms for each request
const SOON = 100; // ms after which the browser has told of a request that the page's policy forbids
const said = new Set();

/**
 * Finds out why a page cannot read a server, and says it once on the console.
 * @param {string} url what anyone may GET of the server, such as `/api/v1/sse/status`
 * @returns {Promise<string | null>} what it probably is and what to do about it, in a sentence or two; empty where
 *   nothing keeps the page from that server, null where that cannot be told: the server may just be away
 */
export async function explain(url) {
  const { origin, protocol } = new URL(url);
  const { location, document } = globalThis;
  if (!location || origin === location.origin) return "";
  const forbidden = [];
  const note = (event) => event.blockedURI.startsWith(origin) && forbidden.push(event.effectiveDirective);
  const policy = document ?? globalThis;
  policy.addEventListener("securitypolicyviolation", note);
  try {
    if (await isAnswered(url, "cors")) return "";
    const isThere = await isAnswered(url, "no-cors");
    await new Promise((resolve) => setTimeout(resolve, SOON));
    if (forbidden.length) return say(`This page's Content-Security-Policy forbids it to ask ${origin}: add that to ${forbidden[0]}.`);
    if (isThere) return say(`${origin} is there, but lets no page of ${location.origin} read its answers: add "${location.origin}" to the server's cors_origins.`);
    if (location.protocol === "https:" && protocol === "http:") return say(`A page on https may not ask ${origin}: serve that over https too.`);
    return null;
  } finally {
    policy.removeEventListener("securitypolicyviolation", note);
  }
}

async function isAnswered(url, mode) {
  const signal = AbortSignal.timeout(PATIENCE);
  const answer = await fetch(url, { mode, signal, cache: "no-store", credentials: "omit" }).catch(() => null);
  return answer !== null;
}

function say(sentence) {
  if (!said.has(sentence)) console.warn(`sse_app: ${sentence}`);
  said.add(sentence);
  return sentence;
}
