import { EventStream } from "../django_sse/event-stream.js";
import { showState } from "./state.js";

const form = document.querySelector("#job");
const [progress, step] = document.querySelectorAll("#progress, #step");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  event.submitter.disabled = true;
  progress.value = 0;
  step.textContent = "Started.";

  const job = new EventStream(`${form.action}?${new URLSearchParams(new FormData(form))}`, { json: true });
  showState(job, document.querySelector("#job-state"));
  job.addEventListener("progress", ({ data }) => {
    progress.max = data.steps;
    progress.value = data.step;
    step.textContent = `Step ${data.step} of ${data.steps}.`;
  });
  job.addEventListener("close", ({ reason }) => {
    step.textContent = reason === "complete" ? "Done." : `The server refused the job: ${reason}.`;
    event.submitter.disabled = false;
  });
});
