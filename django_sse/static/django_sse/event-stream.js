/**
 * A client of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html):
 * EventSource's interface, and what its users write around it. A server that says `close` or 204
 * is believed; any other end is come back from, with the place kept. See event-stream.d.ts.
 */

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

/** The milliseconds in which a tab answers another, unless it is suspended, or shows a dialog. */
const ANSWER = 1000;

/** The milliseconds after `beforeunload` in which browsers end the connections of a page. */
const LEAVING = 5000;

/** The milliseconds in which a server that was told where to go on says so. */
const HOLD = 1000;

/** Statuses that are final: none of the client's own that pass, for timeout, too early, too many requests. */
const FINAL = /^(204|4(?!08|25|29)..)$/;

/** How soon to come back while the server has not said, in milliseconds, and how often it failed. */
const PACE = { retry: 3000, failures: 0 };

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

  function take(line) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (!line) {
      onBlock({ ...block, type: block.type || "message", data: block.data?.join("\n") });
      block = {};
    } else if (field === "data") {
      (block.data ??= []).push(value);
    } else if (field === "event") {
      block.type = value;
    } else if (field === "id" && !value.includes("\0")) {
      block.id = value;
    } else if (field === "retry" && /^\d+$/.test(value)) {
      onRetry(+value);
    }
  }

  return (text) => {
    // The LF of a CRLF that was cut in two.
    const lines = (endedInCR ? text.replace(/^\n/, "") : text).split(/\r\n?|\n/);
    endedInCR = text.endsWith("\r");
    // What is not over is not looked through again.
    lines[0] = rest + lines[0];
    rest = lines.pop();
    lines.forEach(take);
  };
}

/** Do something after so many milliseconds: of more than 31 bits, browsers make none. */
function after(milliseconds, what) {
  return setTimeout(what, Math.min(milliseconds, 2 ** 31 - 1));
}

/** Returns a URL of a page or worker, without the password that it may have been opened with: fetch refuses that. */
function resolved(address) {
  const url = new URL(address, globalThis.document?.baseURI ?? globalThis.location?.href);
  url.username = url.password = "";
  return url;
}

/** Returns the number of each group in an id of the server's, and nothing of any other id. */
function numbers(id) {
  return Object.fromEntries([...id.matchAll(/([\w-]{11})\.(\w+)~/g)].map(([, ...pair]) => pair));
}

/** Returns Django's CSRF token: the cookie's, or that of the page's form. */
function csrfToken() {
  const cookie = /(?:^|; )csrftoken=(\w+)/.exec(document.cookie);
  return cookie?.[1] ?? document.querySelector("[name=csrfmiddlewaretoken]")?.value ?? "";
}

/** Returns the headers of a request to a URL, by the options of a stream. */
async function headersOf({ headers, csrf }, { origin }) {
  const all = new Headers(await (headers?.call ? headers() : headers));
  if (csrf && origin === globalThis.origin) all.set("X-CSRFToken", csrfToken());
  return all;
}

/** A connection of one's own: reads blocks, and comes back until it is told to stop. */
class Connection {
  pace;
  #options;
  #listener;
  #id;
  #sent;
  #held = [];
  #request;
  #timer;
  #heardAt;
  #isWaiting;
  #isElsewhere;
  #hasWarned;

  constructor(options, id, listener, pace = PACE) {
    this.#options = options;
    this.#id = id;
    this.#listener = listener;
    this.pace = { ...pace };
    if (pace.failures) this.#wait();
    else this.#connect();
  }

  close() {
    clearTimeout(this.#timer);
    this.#listener = null;
    this.#request?.abort();
  }

  /** Come back now, if it waits for that. */
  hurry() {
    if (this.#isWaiting) this.#connect();
  }

  /** Whether it stands still, as in a page in which nothing runs. */
  get isStill() {
    return !this.#isWaiting && Date.now() - this.#heardAt > this.#options.silence;
  }

  async #connect() {
    this.#isWaiting = false;
    this.#request = new AbortController();
    let reason = "ended";
    let hasBegun;
    try {
      this.#watch();
      // Whoever has made it listens first.
      await null;
      if (!/^https?:/.test(this.#options.url)) return this.#fail("not http(s)");
      const response = await this.#fetch();
      const { status } = response;
      if (FINAL.test(status)) return this.#listener("ended", `${status}`);
      if (status !== 200) throw status;
      const type = response.headers.get("Content-Type");
      if (!/^text\/event-stream\s*(;|$)/i.test(type)) return this.#fail(`no event stream, but ${type}`);
      hasBegun = true;
      await this.#read(response);
    } catch (error) {
      reason = `${error?.message ?? error}`;
    }
    this.#request.abort();
    this.#give();
    if (!this.#listener) return;
    if (!hasBegun) this.#warn(reason);
    this.#comeBack(reason);
  }

  async #fetch() {
    const { address, method, body, headers: given, csrf, credentials, origins } = this.#options;
    const url = new URL(address);
    const isOwn = url.origin === globalThis.origin;
    const isPrivate = credentials === "include" || given || body;
    const headers = await headersOf(this.#options, url);
    headers.set("Accept", "text/event-stream");
    const id = this.#id || (url.searchParams.get("lastEventId") ?? "");
    if (this.#id) {
      // Of the query, all else stays as it is.
      const pair = `${new URLSearchParams({ lastEventId: id })}`;
      const there = /([?&])lastEventId=[^&]*/g;
      const { search } = url;
      url.search = search.match(there) ? search.replace(there, `$1${pair}`) : `${search}${search && "&"}${pair}`;
    }
    // A redirect may drop the query. In another origin the header needs a preflight, and what is not
    // of ASCII browsers do not send in the same way.
    if (isOwn && !this.#isElsewhere && /^[!-~]+$/.test(id)) headers.set("Last-Event-ID", id);
    this.#sent = numbers(id);
    const response = await fetch(url, {
      method,
      body,
      headers,
      // No redirect takes cookies, tokens or a body to another origin, or brings what is not trusted.
      mode: isOwn && (isPrivate || origins || csrf) ? "same-origin" : "cors",
      // Where one has led is seen when the cookies are there already.
      redirect: isPrivate && !isOwn ? "error" : "follow",
      cache: "no-store",
      credentials,
      signal: this.#request.signal,
    }).catch((error) => {
      // No more is said of what CORS or the page's policy has refused.
      throw `no answer: ${error?.message ?? error}`;
    });
    // What a service worker has made has no URL.
    const from = new URL(response.url || address);
    this.#isElsewhere = from.origin !== globalThis.origin;
    if (!/^get$/i.test(method)) {
      // No POST is sent twice, by no later connection either: it goes on from where its answer says.
      const next = new URL(response.headers.get("Content-Location") ?? "blob:", from);
      const there = next.origin === url.origin && from.origin === url.origin ? next.href : "";
      Object.assign(this.#options, { address: there, method: "GET", body: undefined });
    }
    if (origins && !origins.includes(from.origin)) throw `not of ${origins}: ${from}`;
    return response;
  }

  async #read(response) {
    const { origin } = new URL(response.url || this.#options.url);
    const parse = parser(
      (block) => this.#take({ ...block, origin }),
      (milliseconds) => (this.pace.retry = milliseconds),
    );
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    this.#listener("opened");
    while (this.#listener) {
      this.#watch();
      const { done, value } = await reader.read();
      if (done) return;
      parse(value);
    }
  }

  #take(block) {
    const { id, type, data, origin } = block;
    // A server that refuses says when to come back, and no more.
    if ((id ?? data) === undefined) return;
    this.pace.failures = 0;
    this.#held.push(block);
    const sent = Object.entries(this.#sent);
    // It says first where it goes on from; but for its state as of now, which is held until then.
    if (sent.length && id === undefined && !/^(reset|close)$/.test(type)) return void after(HOLD, () => this.#give());
    this.#sent = {};
    const there = data === undefined ? numbers(id) : {};
    if (sent.some(([group, number]) => (there[group] ?? number) !== number)) {
      this.#held.unshift({ type: "reset", data: "{}", origin });
    }
    this.#give();
  }

  #give() {
    for (const held of this.#held.splice(0)) {
      this.#id = held.id ?? this.#id;
      this.#listener?.("took", held);
    }
  }

  /** Give a connection up that is silent for too long, heartbeats included. */
  #watch() {
    clearTimeout(this.#timer);
    this.#heardAt = Date.now();
    this.#timer = after(this.#options.silence, () => this.#request.abort("silence"));
  }

  #comeBack(reason) {
    clearTimeout(this.#timer);
    if (!this.#options.address) return this.#fail("not posted twice");
    if (this.pace.failures >= this.#options.maxRetries) return this.#listener("ended", "max retries");
    this.pace.failures += 1;
    this.#wait();
    this.#listener("lost", reason);
  }

  #wait() {
    const { retry, failures } = this.pace;
    // Also from nothing it grows.
    const grown = Math.min((retry || 1) * 2 ** (failures - 1), this.#options.maxDelay);
    this.#isWaiting = true;
    this.#timer = after(Math.max(retry, grown) * (1 + Math.random() / 2), () => this.#connect());
  }

  #fail(reason) {
    this.#warn(reason);
    this.#listener("ended", reason);
  }

  #warn(reason) {
    if (!this.#hasWarned) console.warn(`EventStream ${this.#options.url}: ${reason}`);
    this.#hasWarned = true;
  }
}

/**
 * What tabs post to each other, but for their question, and the types of each field by their first
 * letters, as of "string" and "undefined".
 */
const REPORT = { at: "s", open: "b", state: "su", reason: "su" };
const BLOCK = { id: "su", type: "s", data: "su", origin: "s" };
const PACES = { retry: "n", failures: "n" };

function fits(value, form) {
  return Object.entries(form).every(([field, types]) => types.includes((typeof value?.[field])[0]));
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
  #name;
  #id;
  #ledTo;
  #own = null;
  #pace;
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
    const { url, credentials, origins } = options;
    this.#name = `django_sse ${[credentials, url, origins]}`;
    this.#channel = new BroadcastChannel(this.#name);
    // All that has this origin may post to it.
    this.#channel.onmessage = ({ data }) => {
      if (fits(data, { asks: "b" })) this.#answer();
      if (!fits(data, REPORT) || !fits(data.pace, PACES)) return;
      if (data.block === undefined || fits(data.block, BLOCK)) this.#hear(data);
    };
    this.#channel.postMessage({ asks: true });
    this.#connect();
    this.#stand();
  }

  close() {
    clearTimeout(this.#timer);
    this.#listener = null;
    this.#leave();
    this.#waiting.abort();
    this.#resign?.();
    this.#channel.close();
  }

  hurry() {
    this.#own?.hurry();
  }

  #connect() {
    this.#leave();
    const listener = (what, said) => (what === "took" ? this.#take(said) : this.#say(what, said));
    this.#own = new Connection(this.#options, this.#id, listener, this.#pace);
  }

  #leave() {
    this.#own?.close();
    this.#own = null;
    this.#state = "";
  }

  /** Lead, as soon as those do not who have asked before. */
  #stand() {
    const { signal } = this.#waiting;
    navigator.locks.request(this.#name, { signal }, () => this.#lead()).catch(() => {});
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
    const { pace } = this.#own;
    this.#channel.postMessage({ at: this.#id, open: this.#state === "opened", pace, ...message });
  }

  /** Tell this tab, and those that follow, how the connection is. */
  #say(state, reason) {
    this.#state = state;
    this.#post({ state, reason });
    if (this.#resign && state === "lost") {
      // In a page that is being left, WebKit connects to nothing.
      this.#resign();
      this.#resign = null;
      this.#stand();
    }
    this.#listener(state, reason);
  }

  #take(block) {
    const at = this.#id;
    this.#id = block.id ?? at;
    this.#post({ at, block });
    this.#listener("took", block);
    if (this.#isThere()) this.#follow();
  }

  #answer() {
    // Firefox answers in a page that shows a dialog, and reads nothing.
    if (!this.#resign || this.#own.isStill) return;
    this.hurry();
    this.#post();
  }

  #hear({ at, open, state, reason, block, pace }) {
    // What one that led before has said last is known to this tab, or comes again.
    if (this.#resign) return;
    this.#watch();
    this.#pace = pace;
    if (block && this.#id && at === this.#id) {
      this.#ledTo = this.#id = block.id ?? at;
      this.#follow();
      this.#listener?.("took", block);
      return;
    }
    this.#ledTo = open ? (block?.id ?? at) : null;
    if (this.#isThere()) {
      this.#follow();
    } else if (state === "ended" && !this.#own && at === this.#id) {
      this.#listener("ended", reason);
    } else if (open || state === "ended") {
      // It has what this tab has not, or the other way round.
      if (!this.#own) this.#connect();
    } else if (this.#own || state) {
      // HTTP/1.1 has six connections for a host: the one that is for all goes first.
      const isNew = this.#state !== "lost" || state;
      this.#leave();
      if (isNew) this.#listener("lost", reason);
    }
  }

  #isThere() {
    return this.#listener && !this.#resign && this.#id && this.#id === this.#ledTo;
  }

  #follow() {
    this.#leave();
    this.#listener("opened");
  }

  /** Go without the one that leads, if nothing runs in it: it is silent, and does not answer. */
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = after(this.#options.silence, () => {
      this.#channel.postMessage({ asks: true });
      this.#timer = after(ANSWER, () => {
        this.#ledTo = null;
        this.#pace = undefined;
        if (!this.#own) this.#connect();
      });
    });
  }
}

/** A connection of one's own, or of all tabs where that is asked for and allowed. */
function connect(options, ...others) {
  try {
    // Locks are for secure contexts alone; where cookies are blocked, Firefox refuses the channel.
    if (options.shared && navigator.locks) return new SharedConnection(options, ...others);
  } catch {
    // As without.
  }
  return new Connection(options, ...others);
}

/**
 * One connection for all clients of a page that ask for the same, of which HTTP/1.1 has six for a
 * host. A client that begins elsewhere than where it stands has its own until it is there.
 */
class PageConnection {
  static #all = new Map();

  #key;
  #id;
  #isOpen;
  #members = new Set();
  #shared;

  /** Returns what a listener leaves by, and comes back at once. */
  static join(options, start, listener) {
    const { lastEventId, json, pauseWhenHidden, ...asked } = options;
    const key = asked.isPlain ? JSON.stringify(asked) : {};
    if (!this.#all.has(key)) this.#all.set(key, new this(key, options, start));
    return this.#all.get(key).#join(options, start, listener);
  }

  constructor(key, options, id) {
    this.#key = key;
    this.#id = id;
    this.#shared = connect(options, id, (what, said) => this.#tell(what, said));
  }

  #tell(what, said) {
    this.#isOpen = what === "opened" || (this.#isOpen && what === "took");
    if (what === "ended") this.#leave();
    // Where there are no ids, nobody is where it is who was not there from its start.
    if (what === "took") this.#id = said.id ?? (this.#id || null);
    for (const member of [...this.#members]) {
      if (!member.own && this.#members.has(member)) member.listener(what, said);
      this.#gather(member);
    }
  }

  #join(options, id, listener) {
    const member = { id, listener };
    this.#members.add(member);
    if (id !== this.#id) {
      member.own = connect(options, id, (what, said) => {
        if (what === "took") member.id = said.id ?? member.id;
        listener(what, said);
        this.#gather(member);
      });
    } else if (this.#isOpen) {
      // Whoever has made it listens first.
      queueMicrotask(() => this.#members.has(member) && listener("opened"));
    }
    return {
      hurry: () => (member.own ?? this.#shared).hurry(),
      close: () => {
        member.own?.close();
        this.#members.delete(member);
        if (!this.#members.size) this.#leave();
      },
    };
  }

  /** Let a client share the connection that has come as far. */
  #gather(member) {
    if (!this.#isOpen || member.id !== this.#id) return;
    member.own?.close();
    member.own = null;
  }

  #leave() {
    this.#isOpen = false;
    this.#shared.close();
    if (PageConnection.#all.get(this.#key) === this) PageConnection.#all.delete(this.#key);
  }
}

export class EventStream extends EventTarget {
  static {
    for (const where of [this, this.prototype]) Object.assign(where, { CONNECTING, OPEN, CLOSED });
    for (const type of ["open", "message", "error"]) {
      Object.defineProperty(this.prototype, `on${type}`, {
        get() {
          return this.#handlers[type] ?? null;
        },
        set(handler) {
          const isSet = Object(handler) === handler;
          this.#handlers[type] = isSet ? handler : null;
          // It has its turn from when it was set first.
          this[isSet ? "addEventListener" : "removeEventListener"](type, this.#handle);
        },
      });
    }
  }

  #options;
  #connection;
  #readyState = CONNECTING;
  #lastEventId;
  #isAway;
  #isLeaving;
  #handlers = {};
  #handle = (event) => {
    this.#handlers[event.type]?.call?.(this, event);
  };
  /** Chromium lets a frozen page keep its locks, and loses its connections. */
  #onLifecycle = ({ type, target }) => {
    if (type === "beforeunload") {
      // Firefox and WebKit end the connections of a page before it is left, and it may stay.
      this.#isLeaving = true;
      after(LEAVING, () => (this.#isLeaving &&= this.#readyState !== OPEN));
      return;
    }
    if (/^[frp]/.test(type) && !target.localName) this.#isAway = /^f|hi/.test(type);
    if (this.#isAway || (this.#options.pauseWhenHidden && globalThis.document?.hidden)) this.#pause();
    else this.#connect();
  };

  constructor(url, options = null) {
    super();
    const given = Object.fromEntries(Object.entries(options ?? {}).filter(([, value]) => value != null));
    url = resolved(url);
    // Each request of one's own is another one.
    const isPlain = !["method", "body", "headers", "csrf"].some((name) => name in given);
    this.#options = {
      method: "body" in given ? "POST" : "GET",
      credentials: given.withCredentials ? "include" : "same-origin",
      silence: 45_000,
      maxDelay: 30_000,
      maxRetries: Infinity,
      ...given,
      shared: isPlain && given.shared,
      isPlain,
      url: url.href,
      address: url.href,
    };
    this.#lastEventId = `${given.lastEventId ?? ""}`;
    this.#listen("addEventListener");
    this.#onLifecycle({});
  }

  get url() { return this.#options.url; }
  get withCredentials() { return this.#options.credentials === "include"; }
  get readyState() { return this.#readyState; }
  get lastEventId() { return this.#lastEventId; }

  close() {
    this.#pause();
    this.#readyState = CLOSED;
    this.#listen("removeEventListener");
  }

  /** Ask the server for the end: DELETE, where it goes on from a POST, or POST to a URL. */
  async stop(url) {
    const where = resolved(url || this.#options.address || this.url);
    const { ok, status } = await fetch(where, {
      method: url ? "POST" : "DELETE",
      headers: await headersOf({ ...this.#options, csrf: globalThis.document }, where),
      credentials: this.#options.credentials,
      redirect: "error",
    });
    if (!ok) throw new Error(status);
    // The server may have said so in the stream.
    if (this.#readyState !== CLOSED) this.#end("stopped");
  }

  /** What happens to the document is seen here as well. On a server there is nothing of a browser. */
  #listen(how) {
    const types = ["visibilitychange", "freeze", "resume", "pageshow", "pagehide", "beforeunload", "online"];
    for (const type of types) globalThis[how]?.(type, this.#onLifecycle, true);
  }

  #connect() {
    if (this.#connection) return this.#connection.hurry();
    this.#connection = PageConnection.join(this.#options, this.#lastEventId, (what, said) => {
      if (what === "took") return this.#take(said);
      if (what === "ended") return this.#end(said);
      if (what === "lost") return this.#become(CONNECTING, "error", said);
      this.#isLeaving = false;
      if (this.#readyState !== OPEN) this.#become(OPEN, "open");
    });
  }

  #pause() {
    this.#connection?.close();
    this.#connection = null;
    this.#readyState = CONNECTING;
  }

  #become(state, type, reason) {
    this.#readyState = state;
    if (!this.#isLeaving) this.dispatchEvent(Object.assign(new Event(type), { reason }));
  }

  #take({ id, type, data, origin }) {
    this.#lastEventId = id ?? this.#lastEventId;
    if (data === undefined) return;
    if (type === "close") this.#end(fromJSON(data)?.reason ?? null, data, origin);
    else this.#dispatch(type, data, origin);
  }

  /** The server's last word, or the client's own; what follows from it comes first. */
  #end(reason, data = JSON.stringify({ reason }), origin) {
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

const SWAPS = /^(innerHTML|outerHTML|textContent|setHTML|remove|(before|after)(begin|end))$/;

/** Makes what a page with Trusted Types takes for HTML, once it is needed: a page may forbid that. */
let policy;
const anyHTML = { createHTML: (html) => html };
function trusted(html) {
  try {
    policy ??= trustedTypes.createPolicy("django_sse", anyHTML);
  } catch {
    policy = anyHTML;
  }
  return policy.createHTML(html);
}

/** Puts HTML into the page; an element takes the place of the one that has its id, or removes it. */
function place(target, swap, html) {
  const template = document.createElement("template");
  template.innerHTML = trusted(html);
  for (const element of [...template.content.children]) {
    const there = document.getElementById(element.id);
    if (there) {
      there[swap === "remove" ? swap : "replaceWith"](element);
      // What is left, such as nothing but the end of a line.
      html = template.innerHTML.trim();
    }
  }
  if (swap !== "remove") target.insertAdjacentHTML(swap, trusted(html));
}

/** `<event-stream src event target swap>`: puts the HTML of events into the page. */
class EventStreamElement extends (globalThis.HTMLElement ?? Object) {
  stream = null;
  #asked;
  #events = [];
  #state;
  #onEvent = ({ data }) => this.#swap(data);
  /** Who morphs a page changes several attributes, and takes `state` away. */
  #observer = new MutationObserver(() => this.isConnected && this.#follow());

  connectedCallback() {
    this.#observer.observe(this, { attributes: true });
    this.#follow();
  }

  // Moved by moveBefore, it keeps its stream.
  connectedMoveCallback() {}

  disconnectedCallback() {
    this.#asked = null;
    this.stream?.close();
  }

  #follow() {
    const [swap] = this.#words("swap", "innerHTML");
    if (!SWAPS.test(swap)) throw new Error(`<event-stream>: not of swap: ${swap}`);
    if (!this.hasAttribute("src")) throw new Error("<event-stream>: no src");
    const src = resolved(this.getAttribute("src"));
    const options = {
      origins: [self.origin, ...this.#words("trusted-origin")],
      withCredentials: this.hasAttribute("with-credentials"),
      shared: this.hasAttribute("shared"),
      pauseWhenHidden: this.hasAttribute("pause-when-hidden"),
    };
    const asked = JSON.stringify([src, options]);
    if (asked !== this.#asked) this.#open(src, options);
    this.#asked = asked;
    for (const type of this.#events) this.stream?.removeEventListener(type, this.#onEvent);
    this.#events = this.#words("event", "message");
    for (const type of this.#events) this.stream?.addEventListener(type, this.#onEvent);
    this.#show();
  }

  #open(src, options) {
    const before = this.stream;
    before?.close();
    this.stream = null;
    this.#state = "closed";
    // A blob has its page's origin, whoever filled it.
    if (!/^https?:$/.test(src.protocol) || !options.origins.includes(src.origin)) {
      console.error(`<event-stream>: not of trusted-origin: ${src}`);
      return;
    }
    // Moved in the page, or asking for the same in another way, it goes on from where it was.
    const here = before?.url === src.href && before.lastEventId;
    const stream = new EventStream(src, { ...options, lastEventId: here || this.getAttribute("last-event-id") });
    const show = () => {
      this.#state = ["connecting", "open", "closed"][stream.readyState];
      this.#show();
    };
    for (const type of ["open", "error", "close"]) stream.addEventListener(type, show);
    stream.addEventListener("reset", () => {
      if (this.getAttribute("reset") === "reload") location.reload();
    });
    this.stream = stream;
    show();
  }

  #show() {
    if (this.getAttribute("state") !== this.#state) this.setAttribute("state", this.#state);
  }

  #words(name, otherwise = "") {
    return (this.getAttribute(name) ?? otherwise).split(/\s+/);
  }

  #swap(html) {
    const [swap] = this.#words("swap", "innerHTML");
    const selector = this.getAttribute("target");
    const targets = selector ? document.querySelectorAll(selector) : [this];
    if (!targets.length) console.warn(`<event-stream>: no ${selector}`);
    for (const target of targets) {
      if (swap === "setHTML") target.setHTML(html);
      else if (/HTML|text/.test(swap)) target[swap] = swap === "textContent" ? html : trusted(html);
      else place(target, swap, html);
    }
  }
}

// A page may have the module from two addresses, with and without a hash; a worker has no elements.
if (globalThis.customElements && !customElements.get("event-stream")) {
  customElements.define("event-stream", EventStreamElement);
  // For scripts that are no modules.
  globalThis.EventStream = EventStream;
}
