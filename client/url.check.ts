// Compiled by `npm run types`: modules that come from the server by URL have types where `paths` says so.
import { SSEClient } from "http://localhost:8000/static/sse-client.js";
import { Session } from "http://localhost:8000/static/sse-session.js";

const session = new Session("http://localhost:8000");
const client = new SSEClient<{ note: string }>("http://localhost:8000/api/v1/sse/alerts", {
  token: session,
  onEvent: ({ data }) => console.log(data.length),
});
client.restart();
// @ts-expect-error there is no such method
client.nothing();
