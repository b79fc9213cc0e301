/** Shows the current readyState of an EventStream or an EventSource. */
export function showState(stream, element) {
  const show = () => {
    element.textContent = ["connecting", "open", "closed"][stream.readyState];
    element.className = `state ${element.textContent}`;
  };
  for (const type of ["open", "error", "close"]) stream.addEventListener(type, show);
  show();
}
