// Peer: better-sse on Node's http server. Arguments: the port, the folder that holds node_modules.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [port, folder] = process.argv.slice(2);
const resolve = createRequire(join(folder, "package.json")).resolve;
const { createChannel, createSession } = await import(pathToFileURL(resolve("better-sse")));

const channels = new Map();
let published = 0;

function channelOf(name) {
  if (!channels.has(name)) channels.set(name, createChannel());
  return channels.get(name);
}

async function serve(request, response) {
  const [, verb, name] = request.url.split("/");
  if (verb === "stream") {
    channelOf(name).register(await createSession(request, response, { keepAlive: 30_000 }));
  } else if (verb === "publish") {
    const parts = [];
    for await (const part of request) parts.push(part);
    const data = JSON.parse(Buffer.concat(parts));
    published += 1;
    channelOf(name).broadcast(data, "tick", { eventId: String(published) });
    response.writeHead(201, { "Content-Type": "application/json" }).end(JSON.stringify({ id: published }));
  } else {
    response.end("ok");
  }
}

createServer(serve).listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
