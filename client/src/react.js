// A React hook on top of the client. What it starts ends with the component that uses it.

import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import { StreamState, INITIAL } from "./parts/stream-state.js";
import { defaults } from "./parts/settings.js";

export { configureSSE } from "./parts/settings.js";

/** A stream, its state as `useSyncExternalStore` wants it, and the functions of the hook: the same in each rendering. */
function createStore(latest) {
  const listeners = new Set();
  const followed = new StreamState(
    () => latest.current,
    () => listeners.forEach((listener) => listener()),
  );
  const subscribe = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };
  return { followed, subscribe, state: () => followed.state, controls: followed.controls };
}

/**
 * A stream as state. `lastEvent` shows the last event of a burst; the `onEvent` option sees each. Another URL, or other
 * `channels`, reopen it there; callbacks are always those of the last rendering.
 */
export function useSSE(url, { channels, ...options } = {}) {
  const latest = useRef(options);
  const [{ followed, subscribe, state, controls }] = useState(() => createStore(latest));
  const { autoConnect = defaults.autoConnect ?? true } = options;
  const names = channels && `${channels}`;
  useEffect(() => {
    latest.current = options;
  });
  useEffect(() => followed.go(url, names), [followed, url, names]);
  useEffect(() => {
    if (autoConnect) followed.connect();
    return () => followed.stop();
  }, [followed, autoConnect]);
  return { ...useSyncExternalStore(subscribe, state, () => INITIAL), ...controls };
}
