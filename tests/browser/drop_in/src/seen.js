// What each view has been told, for whoever counts it.

import { watch } from "vue";

globalThis.seen = { dashboard: [], alerts: [], training: [], backtest: [] };

export function useSeen(view, lastEvent) {
  watch(lastEvent, ({ data }) => seen[view].push((data.update_type ? data : data.data || data).n), { flush: "sync" });
}
