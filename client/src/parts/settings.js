// What the framework bindings share: the settings of an application, and what an address says.

export const defaults = {};
const watchers = new Set();

/** Sets what every stream takes where its own options say nothing: `baseURL`, `token`, and all the others. */
export function configureSSE(options) {
  Object.assign(defaults, options);
  watchers.forEach((act) => act());
}

/** Has something done after each change of the settings. */
export function onConfigured(act) {
  watchers.add(act);
}

/** Returns the options of a stream: its own, and the application's where those say nothing. */
export function complete(options) {
  return Object.fromEntries(Object.entries({ ...defaults, ...options }).filter(([, value]) => value !== undefined));
}

/** Puts the address of the API before a relative URL: the `baseURL` option, else Vite's, else the page's own. */
function absolute(url, baseURL) {
  const base = baseURL ?? import.meta.env?.VITE_API_BASE_URL ?? "";
  return /^https?:/.test(url) || !base ? url : `${base.replace(/\/+$/, "")}/${url.replace(/^\/+/, "")}`;
}

/** Reads a URL as `SSEClient` does: without `channels` they are the last part of its path. */
export function placeOf(given, channels, baseURL) {
  if (!given) return { url: "", channels: new Set() }; // as a ref that has no value yet
  const url = new URL(absolute(`${given}`, baseURL), globalThis.location?.href);
  const path = url.pathname.replace(/\/+$/, "");
  const last = path.lastIndexOf("/");
  const names = channels ?? decodeURIComponent(path.slice(last + 1));
  url.pathname = channels ? path || "/api/v1/sse" : path.slice(0, last);
  return { url: url.href, channels: new Set(typeof names === "string" ? names.split(",").filter(Boolean) : names) };
}
