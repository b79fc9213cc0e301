/**
 * Shows what each EventSource and EventStream of a recipe's page does, so that the recipe's script need not do it.
 * It runs before all other scripts, and replaces EventSource.
 */
import { EventStream } from "../django_sse/event-stream.js";

const STATES = ["CONNECTING", "OPEN", "CLOSED"]; // by readyState
const { EventSource } = window;

/** The log of one connection. */
class Log {
  #element = document.querySelector("#connection").content.cloneNode(true).firstElementChild;

  constructor(url, readyState) {
    this.#element.querySelector(".url").textContent = url;
    document.querySelector("#connections").append(this.#element);
    this.#show(readyState);
  }

  /** Add a line: what happened, the data that came with it, and the readyState after it. */
  add(what, data, readyState) {
    const line = document.createElement("li");
    const time = new Date().toLocaleTimeString("en-GB");
    for (const text of [time, what, data, STATES[readyState]]) {
      const cell = document.createElement("span");
      cell.textContent = text;
      line.append(cell);
    }
    const lines = this.#element.querySelector("ol");
    lines.append(line);
    lines.scrollTop = lines.scrollHeight;
    this.#show(readyState);
  }

  #show(readyState) {
    const state = this.#element.querySelector(".state");
    state.className = `state ${STATES[readyState].toLowerCase()}`;
    state.textContent = `${readyState} ${STATES[readyState]}`;
  }
}

window.EventSource = class extends EventSource {
  #log;
  #types = new Set();

  constructor(url, options) {
    super(url, options);
    this.#log = new Log(url, this.readyState);
    for (const type of ["open", "message", "close", "reset", "error"]) this.#follow(type);
  }

  addEventListener(type, ...others) {
    this.#follow(type);
    super.addEventListener(type, ...others);
  }

  close() {
    super.close();
    this.#log.add("close()", "", this.readyState);
  }

  #follow(type) {
    if (this.#types.has(type)) return;
    this.#types.add(type);
    super.addEventListener(type, ({ data }) => this.#log.add(type, data ?? "", this.readyState));
  }
};

const streams = new Map();

EventStream.prototype.dispatchEvent = function (event) {
  const { url, readyState } = this;
  if (!streams.has(this)) streams.set(this, new Log(new URL(url).pathname, readyState));
  const { type, data = "" } = event;
  streams.get(this).add(type, typeof data === "string" ? data : JSON.stringify(data), readyState);
  return EventTarget.prototype.dispatchEvent.call(this, event);
};

// Datastar uses neither. It dispatches this event for each of its requests.
let datastar;
document.addEventListener("datastar-sse", ({ detail: { type, argsRaw } }) => {
  const state = { started: 0, retrying: 0, finished: 2 }[type] ?? 1;
  datastar ??= new Log("@get", state);
  datastar.add(type, Object.values(argsRaw).join("\n"), state);
});
