/** A server-sent event. `data` is text, or with `json` what the text says as JSON. */
export interface StreamEvent<Data = any> extends MessageEvent<Data> {}

/**
 * The server's last word: its `close` event, 204, or a refusal; or the client has given up.
 * `reason` is what the server says in `close`, the HTTP status, "max retries", "not posted twice",
 * or why there will be no stream, which is on the console as well.
 */
export interface StreamEndEvent extends MessageEvent {
  readonly reason: string | null;
}

/** A connection is lost. `reason` is the HTTP status, or what the browser says of it. */
export interface StreamErrorEvent extends Event {
  readonly reason?: string;
}

/** Options that are null are as if they were not given. */
export interface EventStreamOptions {
  /** Send cookies to another origin, too. No redirect is followed there then. */
  withCredentials?: boolean;
  /** As `fetch` has it, in place of `withCredentials`: "omit" sends no cookies at all. */
  credentials?: "omit" | "same-origin" | "include";
  /**
   * The method: POST where there is a `body`, else GET. After the first answer it goes on by GET
   * from the answer's `Content-Location`, if that is of the same origin; without one, it ends when
   * that answer does. What had no answer is sent again.
   */
  method?: string;
  /** What is sent, as `fetch` takes it. */
  body?: BodyInit;
  /**
   * Headers, or a function that is asked for them at each attempt, as for a token that is renewed.
   * Own requests, those with a method, a body, headers or `csrf`, share no connection. To another
   * origin they need its permission, and within the page's own no redirect takes them out of it.
   */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /**
   * Send Django's CSRF token to the page's own origin: that of the cookie `csrftoken`, or of a
   * `{% csrf_token %}` in the page.
   */
  csrf?: boolean;
  /**
   * The origins that may answer, also after redirects; anything else is a lost connection. Without
   * it, whoever answers is read, as by EventSource: `origin` of an event says who did.
   */
  origins?: string[];
  /** Where to go on from, such as what `{% event_stream_position %}` says. */
  lastEventId?: string;
  /** Parse `data` as JSON; what is none stays text. */
  json?: boolean;
  /**
   * Share one connection with all tabs of this origin that have a stream of this URL. Needs a
   * secure context (https, or localhost); elsewhere each tab has its own, as where the server
   * sends no ids. A position goes into `lastEventId`, for with it in the URL there is no other tab.
   * Whoever is logged in reads what another tab's connection brings: where one group's events
   * differ from user to user, as by `filter_event`, put the user into the URL. Pages of this origin
   * trust each other: one that imitates a tab's messages is believed.
   */
  shared?: boolean;
  /** Hold no connection while the page is hidden, or in the back/forward cache. */
  pauseWhenHidden?: boolean;
  /**
   * Milliseconds without a byte, heartbeats included, after which a connection is given up:
   * 45,000, three of the server's heartbeats. Infinity for never.
   */
  silence?: number;
  /** Milliseconds that waiting before a reconnect grows up to, if the server's `retry` is less. */
  maxDelay?: number;
  /** How many times in a row to come back without success before giving up. */
  maxRetries?: number;
}

export interface EventStreamEventMap {
  open: Event;
  /** The connection is lost, and comes back. */
  error: StreamErrorEvent;
  message: StreamEvent;
  /** The end: nothing comes after it, and there is no reconnect. */
  close: StreamEndEvent;
  /**
   * Events were lost, for they are not kept any more, or the server was not told where to go on:
   * what depends on them is to be read anew.
   */
  reset: StreamEvent;
}

/** The events of a stream, given the data of each type, as `manage.py sse_types` writes them. */
export type EventsOf<Types extends object> = Omit<EventStreamEventMap, keyof Types> & {
  [Type in keyof Types]: StreamEvent<Types[Type]>;
};

/** Types other than `string` are those of JSON, which is parsed with `json` alone. */
type OptionsOf<Types extends object> = [keyof Types] extends [never]
  ? [options?: EventStreamOptions | null]
  : [Types[keyof Types]] extends [string]
    ? [options?: EventStreamOptions | null]
    : [options: EventStreamOptions & { json: true }];

/** A stream without declared types has events of any name. */
type NameOf<Types extends object> =
  | (keyof EventsOf<Types> & string)
  | ([keyof Types] extends [never] ? string & {} : never);

type EventNamed<Types extends object, Name> = Name extends keyof EventsOf<Types>
  ? EventsOf<Types>[Name]
  : StreamEvent;

/**
 * EventSource's interface, with these differences: `close` and 204 end it, as does what can be no
 * stream; whatever else happens, a 502 included, it comes back, later and later, and keeps its
 * place. With `withCredentials` a redirect to another origin is a lost connection, and asks nothing
 * there. Those of one page that ask for the same share a connection.
 *
 * With `new EventStream<HeadlinesEvents>(url, { json: true })` listeners know their data.
 */
export class EventStream<Types extends object = {}> extends EventTarget {
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSED: 2;

  /** @throws {TypeError} The URL is none. */
  constructor(url: string | URL, ...options: OptionsOf<Types>);

  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSED: 2;
  readonly url: string;
  readonly withCredentials: boolean;
  readonly readyState: 0 | 1 | 2;
  /** The id of the last event: where it goes on from. */
  readonly lastEventId: string;

  onopen: ((this: this, event: Event) => any) | null;
  onmessage: ((this: this, event: EventNamed<Types, "message">) => any) | null;
  onerror: ((this: this, event: StreamErrorEvent) => any) | null;

  /** End it. No event comes after this. */
  close(): void;

  /**
   * Ask the server to end what is streamed, and end it here: `close` comes with the reason
   * `stopped`. The request has the CSRF token of the page.
   *
   * @param url Where to POST to. Without it, DELETE is sent to the stream's own address.
   * @throws If the server refuses or does not answer. The stream then goes on.
   */
  stop(url?: string | URL): Promise<void>;

  addEventListener<Name extends NameOf<Types>>(
    type: Name,
    listener: ((this: this, event: EventNamed<Types, Name>) => any) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Name extends NameOf<Types>>(
    type: Name,
    listener: ((this: this, event: EventNamed<Types, Name>) => any) | EventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/**
 * `<event-stream src event target swap>`: puts the HTML of events into the page, as it comes.
 *
 * - `src`: the URL of the stream, of the page's own origin; another one is not asked
 * - `trusted-origin`: other origins that `src` may be of, such as `https://api.example.com`,
 *   separated by spaces; what they send is put into the page as HTML. `data:` and `blob:` never are
 * - `event`: the names of the events, separated by spaces; `message` without it
 * - `target`: a CSS selector; the element itself without it
 * - `swap`: `innerHTML`, `outerHTML`, `textContent`, `beforebegin`, `afterbegin`, `beforeend` or
 *   `afterend`, of which the last four put an element in the place of the one in the page that has
 *   its id; `remove`, which removes the elements with these ids; or `setHTML`, which lets the browser sanitize HTML that is not wholly trusted, and
 *   swaps nothing where a browser has no sanitizer
 * - `last-event-id`, `with-credentials`, `shared`, `pause-when-hidden`: as the options are called
 * - `reset="reload"`: load the page anew when events were lost
 *
 * Its `state` is `connecting`, `open` or `closed`. Attributes may change at any time; where `src`
 * stays, the place is kept. A page with Trusted Types allows the policy `django_sse`.
 */
export interface EventStreamElement extends HTMLElement {
  readonly stream: EventStream | null;
}

declare global {
  interface HTMLElementTagNameMap {
    "event-stream": EventStreamElement;
  }
  interface Window {
    /** For scripts that are no modules, where the page has elements. */
    EventStream: typeof EventStream;
  }
}
