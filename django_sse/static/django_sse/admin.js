/**
 * The monitor of Django's admin, and the numbers of streams beside its groups. It follows the
 * reports of all processes: `django_sse.monitoring.ProcessReport` says what their figures are.
 */

/** The milliseconds that a chart shows, after which a process is silent, and is dropped. */
const SHOWN = 120_000;
const SILENT = 6_000;
const DROPPED = 60_000;

const COLORS = 8;
const GROUPS = 20;

/** What charts show: a figure of a report, or how much a counter grows in a second. */
const CHARTS = [
  { name: "Streams", figure: (report) => report.streams },
  { name: "Events published a second", counter: "published" },
  { name: "Deliveries a second", counter: "delivered" },
  { name: "Loop lag, milliseconds", figure: (report) => report.loop_lag * 1000, ofAll: Math.max },
  { name: "Slow clients", figure: (report) => report.slow_clients },
];

/** The columns of the table. What was counted stays in the total until the process is dropped. */
const COLUMNS = [
  { figure: (report) => report.streams, total: "living" },
  { figure: (report) => report.open_groups },
  { figure: (report) => report.users },
  { figure: (report) => report.slow_clients, total: "living" },
  { figure: (report) => report.waiting_bytes, total: "living" },
  { figure: (report) => report.counters.opened, total: "all" },
  { figure: (report) => report.counters.published, total: "all" },
  { figure: (report) => report.counters.delivered, total: "all" },
  { figure: (report) => report.counters.resets, total: "all" },
  { figure: (report) => report.loop_lag, unit: "s", digits: 3 },
  { figure: (report) => report.store_lag, unit: "s", digits: 1 },
];

const processes = new Map();

class Process {
  #points = [];
  #offset = Infinity;

  constructor(name, color) {
    this.name = name;
    this.color = color;
  }

  /** Take a report; its time is by the clock of its host, and old ones may come late. */
  take(report) {
    const at = report.time * 1000;
    this.#offset = Math.min(this.#offset, Date.now() - at);
    if (this.#points.length && this.#points.at(-1).at >= at) return;
    this.#points.push({ at, report });
    while (this.#points[0].at < at - SHOWN) this.#points.shift();
  }

  get report() {
    return this.#points.at(-1).report;
  }

  get silence() {
    return Date.now() - this.#points.at(-1).at - this.#offset;
  }

  get isSilent() {
    return this.silence > SILENT;
  }

  /** Returns the age, in milliseconds, and the value of each point of a chart. */
  line({ figure, counter }) {
    const age = (at) => Date.now() - at - this.#offset;
    if (figure) return this.#points.map(({ at, report }) => [age(at), figure(report)]);
    return this.#points.slice(1).map(({ at, report }, index) => {
      const before = this.#points[index];
      const grown = report.counters[counter] - before.report.counters[counter];
      return [age(at), Math.max((grown * 1000) / (at - before.at), 0)];
    });
  }
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function sum(values) {
  return values.reduce((one, other) => one + other, 0);
}

function shown(value, digits = value < 10 ? 1 : 0) {
  return value.toLocaleString(undefined, { maximumFractionDigits: digits });
}

class Chart {
  #kind;
  #output = element("output");
  #top = element("span");
  #plot = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });

  constructor(kind) {
    this.#kind = kind;
    const scale = element("div", { className: "sse-axis" }, this.#top);
    const times = element("div", { className: "sse-axis" }, element("span", { textContent: "2 minutes ago" }), element("span", { textContent: "now" }));
    this.element = element(
      "figure",
      { className: "sse-chart" },
      element("figcaption", { textContent: kind.name }),
      this.#output,
      scale,
      element("div", { className: "sse-plot" }, this.#plot),
      times,
    );
  }

  draw(all) {
    const lines = all.map((process) => [process, process.line(this.#kind)]);
    const highest = Math.max(1, ...lines.flatMap(([, line]) => line.map(([, value]) => value)));
    this.#top.textContent = shown(highest);
    const last = lines.filter(([process]) => !process.isSilent).map(([, line]) => line.at(-1)?.[1] ?? 0);
    this.#output.textContent = shown(this.#kind.ofAll ? this.#kind.ofAll(0, ...last) : sum(last));
    this.#plot.replaceChildren(
      ...lines.map(([process, line]) => {
        const points = line.map(([age, value]) => `${1000 * (1 - age / SHOWN)},${97 - (94 * value) / highest}`);
        const drawn = svg("polyline", { points: points.join(" "), class: process.isSilent ? "sse-silent" : "" });
        drawn.style.stroke = process.isSilent ? "var(--body-quiet-color)" : process.color;
        return drawn;
      }),
    );
  }
}

function row(name, cells, className = "") {
  const head = element("th", { scope: "row" }, ...name);
  return element("tr", { className }, head, ...cells.map((textContent) => element("td", { textContent })));
}

function drawTable(all) {
  const [body, foot] = ["tbody", "tfoot"].map((part) => document.querySelector(`#sse-processes ${part}`));
  const living = all.filter((process) => !process.isSilent);
  body.replaceChildren(
    ...all.map((process) => {
      const swatch = element("span", { className: "sse-swatch" });
      swatch.style.background = process.color;
      const name = [swatch, process.name];
      if (process.isSilent) name.push(`, silent for ${Math.round(process.silence / 1000)} s`);
      const cells = COLUMNS.map(({ figure, unit, digits = 0 }) => [shown(figure(process.report), digits), unit].join(" ").trim());
      return row(name, cells, process.isSilent ? "sse-silent" : "");
    }),
  );
  const totals = COLUMNS.map(({ figure, total }) => {
    if (!total) return "";
    return shown(sum((total === "all" ? all : living).map(({ report }) => figure(report))), 0);
  });
  foot.replaceChildren(row(["Total"], totals));
}

/** Returns how many streams the groups have that reports name: of a process those with the most. */
function streamsByGroup() {
  const groups = new Map();
  for (const { report, isSilent } of processes.values()) {
    if (isSilent) continue;
    for (const [group, streams] of Object.entries(report.groups)) groups.set(group, (groups.get(group) ?? 0) + streams);
  }
  return groups;
}

function drawGroups(groups) {
  const most = [...groups].sort(([, one], [, other]) => other - one).slice(0, GROUPS);
  document
    .querySelector("#sse-groups tbody")
    .replaceChildren(...most.map(([group, streams]) => row([group], [shown(streams, 0)])));
}

const charts = CHARTS.map((kind) => new Chart(kind));

function draw() {
  for (const [name, process] of processes) if (process.silence > DROPPED) processes.delete(name);
  const all = [...processes.values()].sort((one, other) => (one.name < other.name ? -1 : 1));
  const groups = streamsByGroup();
  if (document.querySelector("#sse-charts")) {
    for (const chart of charts) chart.draw(all);
    drawTable(all);
    drawGroups(groups);
  }
  const isWhole = all.every(({ report }) => Object.keys(report.groups).length === report.open_groups);
  for (const place of document.querySelectorAll("[data-streams-of]")) {
    const streams = groups.get(place.dataset.streamsOf);
    if (all.length) place.textContent = streams === undefined && !isWhole ? "few" : shown(streams ?? 0, 0);
  }
}

function tell(text) {
  const state = document.querySelector("#sse-state");
  if (state) state.textContent = text;
}

function take({ data }) {
  const { process: name } = data;
  if (!processes.has(name)) {
    const taken = new Set([...processes.values()].map(({ color }) => color));
    const colors = Array.from({ length: COLORS }, (_, number) => `var(--sse-${number + 1})`);
    const free = colors.find((color) => !taken.has(color)) ?? colors[processes.size % COLORS];
    processes.set(name, new Process(name, free));
  }
  processes.get(name).take(data);
  draw();
}

const { stream: url } = document.querySelector("#django-sse-admin").dataset;
document.querySelector("#sse-charts")?.append(...charts.map(({ element }) => element));
draw();
setInterval(draw, 1000);

// A site that is served over WSGI has no stream, and the lists do without it.
const maxRetries = document.querySelector("#sse-charts") ? Infinity : 3;
const stream = new EventStream(url, { json: true, shared: true, pauseWhenHidden: true, maxRetries });
stream.addEventListener("open", () => tell("Live."));
stream.addEventListener("error", ({ reason }) => tell(`Connecting again: ${reason}.`));
stream.addEventListener("close", ({ reason }) => tell(`The stream has ended (${reason}). Reload the page.`));
stream.addEventListener("report", take);
