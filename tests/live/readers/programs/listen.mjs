// What a program does with anything that has the interface of EventSource.
export function listen(source, ownLines, report) {
  for (const type of ["message", "headline", "close"]) {
    source.addEventListener(type, ({ data }) => report({ what: "event", type, data }));
  }
  source.addEventListener("error", () => {
    report({ what: source.readyState === source.CLOSED ? "end" : "error" });
  });
  if (ownLines) {
    source.addEventListener("close", () => {
      source.close();
      report({ what: "end" });
    });
  }
}
