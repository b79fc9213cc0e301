// Nothing here calls EventSource.close(): the server alone stops the browser.

const STATES = ["CONNECTING", "OPEN", "CLOSED"]; // by readyState

const $ = (selector) => document.querySelector(selector);

/** Open an EventSource; show what happens to it in `element`, and in the log. */
function connect(name, url, element) {
  const source = new EventSource(url);
  const show = () => {
    const state = STATES[source.readyState].toLowerCase();
    element.dataset.state = state;
    element.querySelector(".badge").textContent = state;
  };
  const count = (key) => {
    element.dataset[key] = Number(element.dataset[key] ?? 0) + 1;
  };
  log(name, "connect", url);
  show();
  source.addEventListener("open", () => {
    count("opens");
    show();
    log(name, "open", `readyState ${STATES[source.readyState]}`);
  });
  source.addEventListener("error", () => {
    count("errors");
    show();
    if (source.readyState === EventSource.CLOSED) {
      log(name, "stopped", "readyState CLOSED: answered 204, or refused; it asks no more");
    } else {
      log(name, "error", `readyState ${STATES[source.readyState]}: it will reconnect`);
    }
  });
  source.addEventListener("close", ({ data }) => {
    log(name, "close", `the server says: it is over (${JSON.parse(data).reason})`);
  });
  return source;
}

function log(name, event, text) {
  const line = document.createElement("li");
  line.dataset.source = name;
  line.dataset.event = event;
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  line.append(time, cell("source", name), cell("event", event), cell("text", text));
  const lines = $("#log");
  lines.append(line);
  while (lines.children.length > 200) lines.firstElementChild.remove();
  lines.scrollTop = lines.scrollHeight;
}

function cell(className, text) {
  const span = document.createElement("span");
  span.className = className;
  span.textContent = text;
  return span;
}

// This machine

const MINUTE = 60;
let samples = [];
let drawing = false;

function connectMetrics() {
  const section = $("#metrics");
  const source = connect("metrics", section.dataset.url, section);
  source.addEventListener("sample", ({ data }) => {
    const sample = JSON.parse(data);
    samples = [...samples.filter(({ time }) => sample.time - time <= MINUTE), sample];
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  });
}

function draw() {
  drawing = false;
  const newest = samples.at(-1);
  const network = niceCeiling(Math.max(...samples.flatMap(({ received, sent }) => [received, sent])));
  drawSeries("cpu", 100);
  drawSeries("memory_used", newest.memory_total);
  drawSeries("received", network);
  drawSeries("sent", network);
  const values = {
    cpu: `${Math.round(newest.cpu)} %`,
    memory: bytes(newest.memory_used),
    "memory-ceiling": bytes(newest.memory_total),
    received: `${bytes(newest.received)}/s`,
    sent: `${bytes(newest.sent)}/s`,
    "network-ceiling": `${bytes(network)}/s`,
  };
  for (const [key, value] of Object.entries(values)) $(`[data-value="${key}"]`).textContent = value;
}

function drawSeries(key, ceiling) {
  const now = samples.at(-1).time;
  const runs = [];
  samples.forEach((sample, index) => {
    // Where samples are missing, so is the line.
    if (!index || sample.time - samples[index - 1].time > 3) runs.push([]);
    const x = MINUTE - (now - sample.time);
    const y = 100 - (100 * sample[key]) / ceiling;
    runs.at(-1).push(`${x.toFixed(2)} ${y.toFixed(2)}`);
  });
  const area = $(`[data-area="${key}"]`);
  $(`[data-line="${key}"]`).setAttribute("d", runs.map((run) => `M${run.join("L")}h0`).join(""));
  area?.setAttribute(
    "d",
    runs.map((run) => `M${run.join("L")}V100H${run[0].split(" ")[0]}Z`).join(""),
  );
}

/** The next of 1, 2, 5, 10, 20 ... kilobytes, so that the scale moves seldom. */
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1000)));
  return power * [1, 2, 5, 10].find((step) => value <= step * power);
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(number, 1)) / 3), units.length - 1);
  const value = number / 1000 ** power;
  return `${value.toFixed(power && value < 10 ? 1 : 0)} ${units[power]}`;
}

// Headlines

let news;
let newsPosition = "";

/** A new EventSource goes on where the one before it was stopped. */
function connectNews() {
  const section = $("#news");
  const url = newsPosition
    ? `${section.dataset.url}?lastEventId=${encodeURIComponent(newsPosition)}`
    : section.dataset.url;
  news = connect("news", url, section);
  for (const type of ["headline", "message"]) news.addEventListener(type, showHeadline);
  news.addEventListener("close", (event) => (newsPosition = event.lastEventId));
  news.addEventListener("reset", () => $("#headlines").replaceChildren());
}

function showHeadline({ data, lastEventId }) {
  newsPosition = lastEventId;
  const line = document.createElement("li");
  line.dataset.id = lastEventId;
  line.textContent = title(data);
  const lines = $("#headlines");
  lines.prepend(line);
  while (lines.children.length > 8) lines.lastElementChild.remove();
}

function title(data) {
  try {
    return JSON.parse(data).title ?? data;
  } catch {
    return data;
  }
}

$("#news form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { formAction } = event.submitter;
  const body = new FormData(event.target);
  const { status } = await fetch(formAction, { method: "POST", body });
  log("page", "POST", `${new URL(formAction).pathname} answered ${status}`);
  if (event.submitter.name === "reopen" && news.readyState === EventSource.CLOSED) connectNews();
});

$("#copy").hidden = !navigator.clipboard;
$("#copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("#push-command").textContent);
  $("#copy").textContent = "Copied";
});

// A job

$("#start").addEventListener("click", () => {
  const section = $("#job");
  const job = connect("job", section.dataset.url, $("#job-connection"));
  const say = (text) => ($("#steps").textContent = text);
  section.dataset.state = "running";
  $("#start").disabled = true;
  $("#progress").value = 0;
  say("Starting.");
  job.addEventListener("progress", ({ data }) => {
    const { step, steps } = JSON.parse(data);
    $("#progress").max = steps;
    $("#progress").value = step;
    say(`Step ${step} of ${steps}.`);
  });
  job.addEventListener("close", () => {
    section.dataset.state = "done";
    say("Done. The browser will ask once more.");
  });
  job.addEventListener("error", () => {
    if (job.readyState !== EventSource.CLOSED) return;
    const done = section.dataset.state === "done";
    if (!done) section.dataset.state = "idle";
    say(done ? "Done, and the browser has stopped." : "The server refused the job.");
    $("#start").disabled = false;
  });
});

connectMetrics();
connectNews();
