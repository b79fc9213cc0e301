// Usage: node eventsource-client.mjs URL [own-lines]
import { createEventSource } from "eventsource-client";

const [url, ownLines] = process.argv.slice(2);
const report = (what) => console.log(JSON.stringify(what));

const source = createEventSource({
  url,
  onScheduleReconnect: () => report({ what: "error" }),
});
for await (const { data, event } of source) {
  report({ what: "event", type: event ?? "message", data });
  if (ownLines && event === "close") source.close();
}
