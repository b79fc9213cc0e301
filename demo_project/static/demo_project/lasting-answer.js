import { EventStream } from "../django_sse/event-stream.js";
import { showState } from "./state.js";

const ENDINGS = {
  complete: "Complete: the model has said all.",
  stopped: "Stopped, by whoever has pressed the button.",
  failed: "Failed: the model has raised an exception.",
  interrupted: "Interrupted: the process of the model is gone.",
  unknown: "Nobody has asked for this answer.",
  204: "This answer is not kept any more.",
};

const form = document.querySelector("#question");
const [stop, ending, state, asked, link, answer] = document.querySelectorAll(
  "#stop, #ending, #answer-state, #asked, #link, #answer",
);
let stream;

/** Show an answer. The options are those of the request that asks for it; all others follow. */
function follow(id, options) {
  stream?.close();
  const page = new URL(`${id}/`, form.action);
  stream = new EventStream(new URL("events/", page), options);
  showState(stream, state);
  answer.textContent = asked.textContent = link.textContent = "";
  ending.textContent = "The model writes.";
  stop.disabled = false;

  stream.addEventListener("open", () => {
    // From here on, the link leads to an answer.
    history.replaceState(null, "", page);
    link.textContent = link.href = page;
  });
  stream.addEventListener("begin", ({ data }) => {
    const { question, began, process } = JSON.parse(data);
    asked.textContent = `${question} Begun once, at ${began} UTC, by process ${process}:`;
  });
  // As text, whatever is in it.
  stream.addEventListener("word", ({ data }) => answer.append(data));
  stream.addEventListener("close", ({ reason }) => {
    ending.textContent = ENDINGS[reason] ?? `The server has refused: ${reason}.`;
    stop.disabled = true;
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  follow(crypto.randomUUID(), { body: new URLSearchParams(new FormData(form)), csrf: true });
});

stop.addEventListener("click", async () => {
  try {
    await stream.stop();
  } catch (error) {
    ending.textContent = `Not stopped: ${error.message}.`;
  }
});

if (form.dataset.answer) follow(form.dataset.answer);
