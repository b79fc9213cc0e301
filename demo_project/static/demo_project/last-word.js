import { EventStream } from "../django_sse/event-stream.js";
import { showState } from "./state.js";

const { url } = document.querySelector("#group").dataset;
const STATES = ["CONNECTING", "OPEN", "CLOSED"];
const positions = {};
const clients = {};

/** Open a client, the library's or the browser's own, at the position of the previous one. */
function connect(Client) {
  const { name } = Client;
  const query = new URLSearchParams({ client: name, lastEventId: positions[name] ?? "" });
  clients[name]?.close();
  const client = (clients[name] = new Client(`${url}?${query}`));
  showState(client, document.querySelector(`#${name}`));
  for (const type of ["open", "error", "headline", "close", "reset"]) {
    client.addEventListener(type, ({ data, lastEventId }) => {
      positions[name] = lastEventId || positions[name];
      log(name, type, data ?? `readyState ${STATES[client.readyState]}`);
    });
  }
}

function log(...words) {
  const line = document.createElement("li");
  line.append(...words.map((word) => Object.assign(document.createElement("span"), { textContent: word })));
  const list = document.querySelector("#log");
  list.append(line);
  list.scrollTop = list.scrollHeight;
}

function connectBoth() {
  connect(EventStream);
  connect(EventSource);
}

document.querySelector("#connect").addEventListener("click", connectBoth);
connectBoth();
