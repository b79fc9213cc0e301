import { EventStream } from "../django_sse/event-stream.js";
import { showState } from "./state.js";

const SECONDS = 60;
let samples = [];

const section = document.querySelector("#metrics");
const stream = new EventStream(section.dataset.url, { json: true });
showState(stream, section.querySelector(".state"));
stream.addEventListener("sample", ({ data }) => {
  samples = [...samples.filter(({ time }) => data.time - time <= SECONDS), data];
  const network = ceiling(Math.max(...samples.flatMap(({ received, sent }) => [received, sent])));
  draw("cpu", 100, (value) => `${Math.round(value)} %`);
  draw("memory_used", data.memory_total, bytes);
  draw("received", network, (value) => `${bytes(value)}/s`);
  draw("sent", network, (value) => `${bytes(value)}/s`);
});

function draw(key, ceiling, text) {
  const newest = samples.at(-1);
  const points = samples.map((sample) => {
    const x = SECONDS - (newest.time - sample.time);
    return `${x.toFixed(2)} ${(100 - (100 * sample[key]) / ceiling).toFixed(2)}`;
  });
  const line = `M${points.join("L")}`;
  const chart = document.querySelector(`[data-chart=${key}]`);
  chart.querySelector(".line").setAttribute("d", `${line}h0`);
  chart.querySelector(".area").setAttribute("d", `${line}V100H${points[0].split(" ")[0]}Z`);
  chart.querySelector("strong").textContent = text(newest[key]);
  chart.querySelector(".ceiling").textContent = text(ceiling);
}

/** Return the next of 1, 2, 5, 10, 20 ... kilobytes, so that the scale seldom changes. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1000)));
  return power * [1, 2, 5, 10].find((step) => value <= step * power);
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(number, 1)) / 3), units.length - 1);
  const value = number / 1000 ** power;
  return `${value.toFixed(power && value < 10 ? 1 : 0)} ${units[power]}`;
}
