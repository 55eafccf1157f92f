// A Svelte store on top of the client. It needs nothing of Svelte: what has `subscribe` is a store.

import { StreamState } from "./parts/stream-state.js";
import { defaults } from "./parts/settings.js";

export { configureSSE } from "./parts/settings.js";

/**
 * A stream as a readable store of its state. It is open while it has subscribers, and resumes after the last event seen.
 * `lastEvent` shows the last event of a burst; the `onEvent` option sees each.
 */
export function sseStore(url, { channels, ...options } = {}) {
  const subscribers = new Set();
  const followed = new StreamState(
    () => options,
    () => subscribers.forEach((run) => run(followed.state)),
  );
  const { autoConnect = defaults.autoConnect ?? true } = options;
  followed.go(url, channels);
  return {
    subscribe(run) {
      const subscriber = (state) => run(state); // one function may subscribe twice
      const isFirst = !subscribers.size; // for another one it would not wait as long as the server has asked for
      subscribers.add(subscriber);
      run(followed.state);
      if (autoConnect && isFirst) queueMicrotask(() => subscribers.size && followed.connect()); // who only looks, as `get` does, is gone by then
      return () => {
        if (subscribers.delete(subscriber) && !subscribers.size) followed.stop();
      };
    },
    /** Leads it to another URL, or to other channels. */
    go: (...target) => followed.go(...target),
    ...followed.controls,
  };
}
