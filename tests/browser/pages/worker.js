// A service worker as applications have them: it answers all requests of their pages, from the network if it can. Its
// URL says whether it keeps copies, and whether it spares streams.

const spares = location.search === "?spares";
const keeps = spares || location.search === "?keeps";

async function answer(request) {
  try {
    const found = await fetch(request);
    if (keeps && request.method === "GET") (await caches.open("copies")).put(request, found.clone()).catch(() => {});
    return found;
  } catch {
    return new Response("<p>You are offline", { headers: { "Content-Type": "text/html" } });
  }
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (spares && new URL(event.request.url).pathname.startsWith("/api/v1/sse/")) return;
  event.respondWith(answer(event.request));
});
