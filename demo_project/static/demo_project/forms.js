/** Sends forms of class "stay" without leaving the page, and shows a refusal in the form. */
document.addEventListener("submit", async (event) => {
  const { target: form, submitter } = event;
  if (!form.matches(".stay")) return;
  event.preventDefault();
  const url = submitter.getAttribute("formaction") ?? form.getAttribute("action");
  const output = form.querySelector("output");
  try {
    const response = await fetch(url, { method: "POST", body: new FormData(form, submitter) });
    output.textContent = response.ok ? "" : await response.text();
    if (response.ok) form.reset();
  } catch {
    output.textContent = "The server cannot be reached.";
  }
});

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
