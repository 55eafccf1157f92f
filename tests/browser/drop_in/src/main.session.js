// The entry of the application that uses the client: the login, and where its streams are, for all views.

import { configureSSE } from "@sse-app/client/vue";
import { Session } from "@sse-app/client/session";
import { createApp } from "vue";
import App from "@/App.vue";

const server = new URLSearchParams(location.search).get("server");
globalThis.over = []; // why logins and streams have ended
globalThis.session = new Session(server, { onEnded: ({ reason }) => over.push(reason) });
globalThis.login = async (...given) => {
  await session.login(...given);
  configureSSE({ baseURL: server, token: session, onClose: ({ reason }) => over.push(reason), onReset: ({ reason }) => over.push(reason) });
  createApp(App).mount("#app");
};
