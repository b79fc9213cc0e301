// better-sse on Node's own server: a channel for each group. Takes the orders of apps/orders.py.
import { createChannel, createSession } from "better-sse";
import { createServer } from "node:http";
import { setImmediate, setTimeout } from "node:timers/promises";

const FILLING = "x".repeat(118);
const channels = new Map();

function channelOf(group) {
  if (!channels.has(group)) channels.set(group, createChannel());
  return channels.get(group);
}

function publish(group, number) {
  const count = String(number).padStart(8, "0");
  const moment = String(process.hrtime.bigint()).padStart(20, "0");
  channelOf(group).broadcast(`@@${count}.${moment}@${FILLING}`, "message");
}

const orders = {
  burst({ events }) {
    for (let number = 1; number <= events; number++) publish("all", number);
  },
  async yielding({ events }) {
    for (let number = 1; number <= events; number++) {
      publish("all", number);
      await setImmediate();
    }
  },
  async paced({ events, milliseconds }) {
    const begun = performance.now();
    for (let number = 1; number <= events; number++) {
      await setTimeout(Math.max(0, begun + number * milliseconds - performance.now()));
      publish("all", number);
    }
  },
  each({ groups, events }) {
    for (let number = 1; number <= events; number++)
      for (let group = 0; group < groups; group++) publish(`one-${group}`, number);
  },
};

const server = createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname.startsWith("/orders/")) {
    const given = [...url.searchParams].map(([name, value]) => [name, Number(value)]);
    await orders[url.pathname.slice("/orders/".length)](Object.fromEntries(given));
    response.end("done");
    return;
  }
  const session = await createSession(request, response, { keepAlive: 15_000 });
  channelOf(url.pathname.replace(/^\/|\/$/g, "").replace("/", "-")).register(session);
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
