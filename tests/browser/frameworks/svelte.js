// A store, and components that show it. What the page asks Svelte itself is in `svelte`.

import { configureSSE, sseStore } from "@sse-app/client/svelte";
import * as svelte from "svelte";
import { derived, get } from "svelte/store";
import Ticks from "./Ticks.svelte";

const { server, token } = globalThis.given;
configureSSE({ baseURL: server, token, share: false });
globalThis.stream = sseStore("/api/v1/sse/user.tester", {
  events: ["tick"],
  onEvent: ({ id, channel }) => log.push({ kind: "event", id, channel }),
});
globalThis.svelte = { derived, get };
const target = document.body;
const options = { target, props: { stream } };
globalThis.show = () => (svelte.mount ? svelte.mount(Ticks, options) : new Ticks(options)); // Svelte 5, or 4
globalThis.hide = (component) => (svelte.unmount ? svelte.unmount(component) : component.$destroy());
globalThis.component = show();
