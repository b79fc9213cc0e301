"""Any text that is sent is what a real browser's EventSource receives."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver.support.wait import WebDriverWait

from django_sse import Event
from tests.fuzz.choices import Choices
from tests.fuzz.inputs import text
from tests.live.browser import Browser
from tests.live.client import SECONDS
from tests.test_event import shown

SEED = 4
EVENTS = 600

PAGE = b"""<!doctype html><meta charset="utf-8"><script>
  var received = [];
  var over = false;
  const source = new EventSource("/events/");
  source.onmessage = (event) => received.push([event.data, event.lastEventId]);
  source.addEventListener("over", () => { source.close(); over = true; });
</script>"""


def hostile_events() -> Iterator[Event]:
    chance = random.Random(SEED)
    for number in range(EVENTS):
        choices = Choices(chance.randbytes(100))
        data, last_id, comment = text(choices), text(choices), text(choices)
        for character in "\r\n\0":
            last_id = last_id.replace(character, "")
        # An empty id would be forgotten, and what follows compared with it.
        yield Event(data, id=f"{number}{last_id}", comment=comment)
    yield Event("x" * 200_000, id="long")
    yield Event("\n" * 2000, id="empty lines")


@contextmanager
def serving(stream: bytes) -> Iterator[int]:
    """Serve a page and its event stream, in a thread."""
    loop = asyncio.new_event_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        is_stream = request.startswith(b"GET /events/")
        body, kind = (stream, b"text/event-stream") if is_stream else (PAGE, b"text/html")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\n\r\n" % kind)
        writer.write(body)
        await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_browser_receives_any_text_as_it_was_sent(browser: Browser) -> None:
    sent = list(hostile_events())
    stream = b"".join(event.encode() for event in [*sent, Event("", event="over")])
    with serving(stream) as port:
        browser.switch_to.window(browser.window_handles[0])
        browser.get(f"http://127.0.0.1:{port}/")
        WebDriverWait(browser, SECONDS).until(lambda _: browser.execute_script("return over"))
        received = browser.execute_script("return received")
    # Firefox leaves NUL out of an event's data.
    left_out = "\0" if browser.name == "firefox" else ""
    expected = [[shown(event.text).replace(left_out, ""), shown(event.id or "")] for event in sent]
    for ours, theirs in zip(expected, received, strict=True):
        assert theirs == ours
