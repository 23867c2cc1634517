// Offline once loaded: what the network does not give comes from what the page has kept.

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const kept = () => caches.match(event.request, { ignoreVary: true, ignoreSearch: event.request.mode === "navigate" });
  event.respondWith(fetch(event.request).catch(async (error) => (await kept()) ?? Promise.reject(error)));
});
