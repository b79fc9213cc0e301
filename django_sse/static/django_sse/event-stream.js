/**
 * A client of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html):
 * EventSource's interface, and what its users write around it. A server that says `close` or 204
 * is believed; any other end is come back from, with the place kept. See event-stream.d.ts.
 */

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

/** The milliseconds to come back in, while the server has not said. */
const RETRY = 3000;

/** The milliseconds in which a tab answers another, unless it is suspended, or shows a dialog. */
const ANSWER = 1000;

/** Statuses of the client's own that pass: timeout, too early, too many requests. */
const PASSING = [408, 425, 429];

/**
 * Returns a function that takes the text of an event stream as it comes.
 *
 * @param {(block: {id?: string, type: string, data?: string}) => void} onBlock
 * @param {(milliseconds: number) => void} onRetry
 */
function parser(onBlock, onRetry) {
  let rest = "";
  let endedInCR = false;
  let block = {};
  let data = [];

  function take(line) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (!line) {
      onBlock({ ...block, type: block.type || "message", data: data.length ? data.join("\n") : undefined });
      block = {};
      data = [];
    } else if (field === "data") {
      data.push(value);
    } else if (field === "event") {
      block.type = value;
    } else if (field === "id" && !value.includes("\0")) {
      block.id = value;
    } else if (field === "retry" && /^\d+$/.test(value)) {
      onRetry(Number(value));
    }
  }

  return (text) => {
    // The LF of a CRLF that was cut in two.
    const fresh = endedInCR ? text.replace(/^\n/, "") : text;
    endedInCR = text.endsWith("\r");
    const lines = (rest + fresh).split(/\r\n|\r|\n/);
    rest = lines.pop();
    lines.forEach(take);
  };
}

/** Do something after so many milliseconds: of more than 31 bits, browsers make none. */
function after(milliseconds, what) {
  return setTimeout(what, Math.min(milliseconds, 2 ** 31 - 1));
}

/** A connection of one's own: reads blocks, and comes back until it is told to stop. */
class Connection {
  #options;
  #listener;
  #id;
  #retry = RETRY;
  #failures = 0;
  #request;
  #timer;

  constructor(options, id, listener) {
    this.#options = options;
    this.#id = id;
    this.#listener = listener;
    this.#connect();
  }

  close() {
    clearTimeout(this.#timer);
    this.#listener = null;
    this.#request.abort();
  }

  async #connect() {
    this.#request = new AbortController();
    try {
      this.#watch();
      const response = await this.#fetch();
      const { status } = response;
      if (status === 204 || (status >= 400 && status < 500 && !PASSING.includes(status))) {
        return this.#listener.ended(String(status));
      }
      if (status !== 200 || !/^text\/event-stream\s*(;|$)/i.test(response.headers.get("Content-Type"))) {
        throw new Error(`Not an event stream: ${response.url}`);
      }
      await this.#read(response);
    } catch {
      // Said to the listener below, as every end that was not asked for.
    }
    this.#request.abort();
    if (this.#listener) this.#comeBack();
  }

  async #fetch() {
    const { url, withCredentials, origins } = this.#options;
    const address = new URL(url);
    const isOwn = address.origin === self.origin;
    // A query needs no preflight, as the header would in another origin.
    if (this.#id) address.searchParams.set("lastEventId", this.#id);
    const response = await fetch(address, {
      // No redirect takes cookies to another origin, or brings what is not trusted.
      mode: isOwn && (withCredentials || origins) ? "same-origin" : "cors",
      // Where one has led is seen when the cookies are there already.
      redirect: withCredentials && !isOwn ? "error" : "follow",
      headers: { Accept: "text/event-stream" },
      cache: "no-store",
      credentials: withCredentials ? "include" : "same-origin",
      signal: this.#request.signal,
    });
    if (origins && !origins.includes(new URL(response.url).origin)) {
      throw new Error(`Not of ${origins.join(" or ")}: ${response.url}`);
    }
    return response;
  }

  async #read(response) {
    const { origin } = new URL(response.url);
    const parse = parser(
      (block) => this.#take({ ...block, origin }),
      (milliseconds) => (this.#retry = milliseconds),
    );
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    this.#listener.opened();
    while (this.#listener) {
      this.#watch();
      const { done, value } = await reader.read();
      if (done) return;
      parse(value);
    }
  }

  #take(block) {
    // A server that refuses says when to come back, and no more.
    if ((block.id ?? block.data) !== undefined) this.#failures = 0;
    this.#id = block.id ?? this.#id;
    this.#listener?.took(block);
  }

  /** Give a connection up that is silent for too long, heartbeats included. */
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = after(this.#options.silence, () => this.#request.abort());
  }

  #comeBack() {
    const { maxDelay, maxRetries } = this.#options;
    clearTimeout(this.#timer);
    if (this.#failures >= maxRetries) {
      this.#listener.ended("max retries");
      return;
    }
    // Also from nothing it grows.
    const grown = Math.min((this.#retry || 1) * 2 ** this.#failures, maxDelay);
    const delay = Math.max(this.#retry, grown);
    this.#failures += 1;
    this.#timer = after(delay * (1 + Math.random() / 2), () => this.#connect());
    this.#listener.lost();
  }
}

const isText = (value) => typeof value === "string";
const isTextOrNone = (value) => value === undefined || isText(value);

/** What tabs post to each other, and what holds of each field: a question, and what is led to. */
const QUESTION = { asks: (value) => value === true };
const BLOCK = { id: isTextOrNone, type: isText, data: isTextOrNone, origin: isText };
const REPORT = {
  at: isText,
  open: (value) => typeof value === "boolean",
  state: (value) => [undefined, "opened", "lost", "ended"].includes(value),
  reason: isTextOrNone,
  block: (value) => value === undefined || fits(value, BLOCK),
};

function fits(value, form) {
  return Object.entries(form).every(([field, holds]) => holds(Object(value)[field]));
}

/**
 * One connection for all tabs: the tab that holds the lock leads, reads, and posts what it takes
 * with the id that was before it. A tab that is at that id follows; one that is not, such as a new
 * one, reads a connection of its own until it is. So nothing is lost or doubled, whoever leads,
 * and whatever becomes of the messages.
 */
class SharedConnection {
  #options;
  #listener;
  #id;
  #ledTo;
  #own = null;
  #state;
  #resign = null;
  #waiting = new AbortController();
  #channel;
  #timer;

  constructor(options, id, listener) {
    this.#options = options;
    this.#id = id;
    this.#listener = listener;
    // A tab believes what another one reads, so it has to ask for the same.
    const { url, withCredentials, origins = "" } = options;
    const name = `django_sse ${withCredentials ? "+" : "-"} ${url} ${origins}`.trim();
    this.#channel = new BroadcastChannel(name);
    // All that has this origin may post to it.
    this.#channel.onmessage = ({ data }) => {
      if (fits(data, QUESTION)) this.#answer();
      else if (fits(data, REPORT)) this.#hear(data);
    };
    this.#channel.postMessage({ asks: true });
    this.#connect();
    const { signal } = this.#waiting;
    navigator.locks.request(name, { signal }, () => this.#lead()).catch(() => {});
  }

  close() {
    clearTimeout(this.#timer);
    this.#listener = null;
    this.#leave();
    this.#waiting.abort();
    this.#resign?.();
    this.#channel.close();
  }

  #connect() {
    this.#leave();
    this.#own = new Connection(this.#options, this.#id, {
      opened: () => this.#say("opened"),
      lost: () => this.#say("lost"),
      ended: (reason) => this.#say("ended", reason),
      took: (block) => this.#take(block),
    });
  }

  #leave() {
    this.#own?.close();
    this.#own = null;
    this.#state = "";
  }

  #lead() {
    if (!this.#listener) return;
    if (!this.#own) this.#connect();
    const resigned = new Promise((resolve) => (this.#resign = resolve));
    this.#post();
    return resigned;
  }

  #post(message) {
    if (!this.#resign) return;
    this.#channel.postMessage({ at: this.#id, open: this.#state === "opened", ...message });
  }

  /** Tell this tab, and those that follow, how the connection is. */
  #say(state, reason) {
    this.#state = state;
    this.#post({ state, reason });
    this.#listener[state](reason);
  }

  #take(block) {
    const at = this.#id;
    this.#id = block.id ?? at;
    this.#post({ at, block });
    this.#listener.took(block);
    if (this.#isThere()) this.#follow();
  }

  #answer() {
    if (this.#state === "lost") this.#connect();
    this.#post();
  }

  #hear({ at, open, state, reason, block }) {
    // What one that led before has said last is known to this tab, or comes again.
    if (this.#resign) return;
    this.#watch();
    if (block && this.#id && at === this.#id) {
      this.#ledTo = this.#id = block.id ?? at;
      this.#follow();
      this.#listener?.took(block);
      return;
    }
    this.#ledTo = open ? (block?.id ?? at) : null;
    if (this.#isThere()) {
      this.#follow();
    } else if (state === "ended" && !this.#own && at === this.#id) {
      this.#listener.ended(reason);
    } else if (open || state === "ended") {
      // It has what this tab has not, or the other way round.
      if (!this.#own) this.#connect();
    } else if (this.#own || state) {
      // HTTP/1.1 has six connections for a host: the one that is for all goes first.
      this.#leave();
      this.#listener.lost();
    }
  }

  #isThere() {
    return this.#listener && !this.#resign && this.#id && this.#id === this.#ledTo;
  }

  #follow() {
    this.#leave();
    this.#listener.opened();
  }

  /** Go without the one that leads, if nothing runs in it: it is silent, and does not answer. */
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = after(this.#options.silence, () => {
      this.#channel.postMessage({ asks: true });
      this.#timer = after(ANSWER, () => {
        this.#ledTo = null;
        if (!this.#own) this.#connect();
      });
    });
  }
}

const LIFECYCLE = ["visibilitychange", "freeze", "resume"];

export class EventStream extends EventTarget {
  static CONNECTING = CONNECTING;
  static OPEN = OPEN;
  static CLOSED = CLOSED;

  onopen = null;
  onmessage = null;
  onerror = null;

  #options;
  #connection = null;
  #readyState = CONNECTING;
  #lastEventId;
  /** Chromium lets a frozen page keep its locks, and loses its connections. */
  #onLifecycle = ({ type }) => {
    if (type === "freeze" || (this.#options.pauseWhenHidden && document.hidden)) this.#pause();
    else this.#connect();
  };

  constructor(
    url,
    {
      withCredentials = false,
      origins,
      lastEventId = "",
      json = false,
      shared = false,
      pauseWhenHidden = false,
      silence = 45_000,
      maxDelay = 30_000,
      maxRetries = Infinity,
    } = {},
  ) {
    super();
    url = new URL(url, document.baseURI).href;
    this.#options = { url, withCredentials, origins, json, shared, pauseWhenHidden, silence, maxDelay, maxRetries };
    this.#lastEventId = lastEventId;
    for (const type of ["open", "message", "error"]) {
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    for (const type of LIFECYCLE) document.addEventListener(type, this.#onLifecycle);
    this.#onLifecycle({});
  }

  get CONNECTING() { return CONNECTING; }
  get OPEN() { return OPEN; }
  get CLOSED() { return CLOSED; }
  get url() { return this.#options.url; }
  get withCredentials() { return this.#options.withCredentials; }
  get readyState() { return this.#readyState; }
  get lastEventId() { return this.#lastEventId; }

  close() {
    this.#pause();
    this.#readyState = CLOSED;
    for (const type of LIFECYCLE) document.removeEventListener(type, this.#onLifecycle);
  }

  #connect() {
    // Locks are for secure contexts alone.
    const kind = this.#options.shared && navigator.locks ? SharedConnection : Connection;
    this.#connection ??= new kind(this.#options, this.#lastEventId, {
      opened: () => this.#readyState === OPEN || this.#become(OPEN, "open"),
      lost: () => this.#become(CONNECTING, "error"),
      ended: (reason) => this.#end(reason, JSON.stringify({ reason })),
      took: (block) => this.#take(block),
    });
  }

  #pause() {
    this.#connection?.close();
    this.#connection = null;
    this.#readyState = CONNECTING;
  }

  #become(state, type) {
    this.#readyState = state;
    this.dispatchEvent(new Event(type));
  }

  #take({ id, type, data, origin }) {
    this.#lastEventId = id ?? this.#lastEventId;
    if (data === undefined) return;
    if (type === "close") {
      this.#end(fromJSON(data)?.reason ?? null, data, origin);
    } else {
      this.#dispatch(type, data, origin);
    }
  }

  /** The server's last word, or the client's own; what follows from it comes first. */
  #end(reason, data, origin) {
    this.close();
    this.#dispatch("close", data, origin, { reason });
  }

  #dispatch(type, text, origin, more) {
    const data = this.#options.json ? fromJSON(text, text) : text;
    const event = new MessageEvent(type, { data, origin, lastEventId: this.#lastEventId });
    this.dispatchEvent(Object.assign(event, more));
  }
}

/** Returns what the text says as JSON, or something else where it says nothing. */
function fromJSON(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}

const ADJACENT = ["beforebegin", "afterbegin", "beforeend", "afterend"];
const PROPERTIES = ["innerHTML", "outerHTML", "textContent"];

/** `<event-stream src event target swap>`: puts the HTML of events into the page. */
class EventStreamElement extends HTMLElement {
  stream = null;

  connectedCallback() {
    const swap = this.getAttribute("swap") ?? "innerHTML";
    if (![...ADJACENT, ...PROPERTIES].includes(swap)) {
      throw new SyntaxError(`<event-stream swap="${swap}">: not one of ${[...PROPERTIES, ...ADJACENT].join(", ")}`);
    }
    if (!this.hasAttribute("src")) throw new TypeError("<event-stream>: it has no src");
    const src = new URL(this.getAttribute("src"), document.baseURI);
    const origins = [self.origin, ...(this.getAttribute("trusted-origin")?.split(/\s+/) ?? [])];
    // A blob has its page's origin, whoever filled it.
    if (!/^https?:$/.test(src.protocol) || !origins.includes(src.origin)) {
      console.error(`<event-stream src="${src}">: neither of this origin nor of an http(s) one in trusted-origin`);
      this.setAttribute("state", "closed");
      return;
    }
    this.stream = new EventStream(src, {
      origins,
      // Moved in the page, it goes on from where it was.
      lastEventId: (this.stream?.lastEventId || this.getAttribute("last-event-id")) ?? "",
      withCredentials: this.hasAttribute("with-credentials"),
      shared: this.hasAttribute("shared"),
      pauseWhenHidden: this.hasAttribute("pause-when-hidden"),
    });
    for (const type of (this.getAttribute("event") ?? "message").split(/\s+/)) {
      this.stream.addEventListener(type, ({ data }) => this.#swap(swap, data));
    }
    for (const type of ["open", "error", "close"]) {
      this.stream.addEventListener(type, () => this.#showState());
    }
    if (this.getAttribute("reset") === "reload") {
      this.stream.addEventListener("reset", () => location.reload());
    }
    this.#showState();
  }

  disconnectedCallback() {
    this.stream?.close();
  }

  #swap(swap, html) {
    const selector = this.getAttribute("target");
    const targets = selector ? document.querySelectorAll(selector) : [this];
    if (!targets.length) console.warn(`<event-stream target="${selector}">: no such element`);
    for (const target of targets) {
      if (PROPERTIES.includes(swap)) target[swap] = html;
      else target.insertAdjacentHTML(swap, html);
    }
  }

  #showState() {
    this.setAttribute("state", ["connecting", "open", "closed"][this.stream.readyState]);
  }
}

// A page may have the module from two addresses, with and without a hash.
customElements.get("event-stream") ?? customElements.define("event-stream", EventStreamElement);
