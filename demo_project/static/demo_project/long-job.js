import { EventStream } from "../django_sse/event-stream.js";
import { showState } from "./state.js";

const ENDINGS = {
  complete: "Done.",
  stopped: "Stopped.",
  failed: "The job has failed.",
  interrupted: "Interrupted: the process of the job is gone.",
  204: "This job is not kept any more.",
};

const form = document.querySelector("#job");
const [state, begin, stop, retry, progress, step, worker] = document.querySelectorAll(
  "#job-state, #begin, #stop, #retry, #progress, #step, #worker",
);
let job;

function follow(url) {
  job = new EventStream(url, { json: true });
  showState(job, state);
  progress.value = 0;
  step.textContent = "Waiting for a process that does it.";
  begin.disabled = retry.disabled = true;
  stop.disabled = false;

  job.addEventListener("begin", ({ data }) => (worker.textContent = data.process));
  job.addEventListener("progress", ({ data }) => {
    progress.max = data.of;
    progress.value = data.done;
    step.textContent = `${data.done} of ${data.of} steps.`;
  });
  job.addEventListener("close", ({ reason }) => {
    step.textContent = ENDINGS[reason] ?? `The server has refused: ${reason}.`;
    worker.textContent = "…";
    begin.disabled = false;
    retry.disabled = reason === "complete";
    stop.disabled = true;
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  begin.disabled = retry.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
    if (!response.ok) throw new Error(`the server says ${response.status}`);
    const { page, stream } = await response.json();
    history.replaceState(null, "", page);
    follow(stream);
  } catch (error) {
    step.textContent = `Not started: ${error.message}.`;
    begin.disabled = false;
  }
});

stop.addEventListener("click", async () => {
  try {
    await job.stop();
  } catch (error) {
    step.textContent = `Not stopped: ${error.message}.`;
  }
});

retry.addEventListener("click", () => {
  form.elements.fail.checked = false;
  form.requestSubmit();
});

if (form.dataset.stream) follow(form.dataset.stream);
