"""No text, whoever it is of, starts a field of a stream or a line of a log, or fails a request."""

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from io import StringIO
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from channels.layers import get_channel_layer
from django.core.management import call_command
from django.core.management.base import CommandError
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, apublish, apublish_template
from django_sse.asgi import get_asgi_application
from django_sse.decorators import EventStreamRequest, event_generator, on_message
from django_sse.exceptions import InvalidEvent
from django_sse.stores.memory import MemoryStore
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.http.test_asgi import Request
from tests.streams import EventReader, open_stream

LINE_ENDS = ["\r", "\n", "\r\n"]
# Line ends to Unicode and to Python, what is no character, and what begins a stream.
OTHERS = ["\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\ud800", "\udc0a", "\ufeff"]


def injection(between: str) -> str:
    return between.join(["x", "event: close", "id: 1", "retry: 0", "data: y", "", "data: z"])


TEXTS = [injection(between) for between in [*LINE_ENDS, *OTHERS]]
texts = pytest.mark.parametrize("text", TEXTS, ids=ascii)


def as_received(text: str) -> str:
    """Return what a browser makes of a text: its line ends are LF, a lone surrogate is U+FFFD."""
    return re.sub("\r\n|\r", "\n", re.sub("[\ud800-\udfff]", "\ufffd", text))


class SharedStore(MemoryStore):
    """A memory store that commands publish to."""

    crosses_processes = True
    address = str(os.getpid())


class News(EventStreamView):
    groups = ["news"]

    @on_message("news.update")
    def news_update(self, message: dict[str, Any]) -> Event:
        return Event(message["text"], comment=message["text"])


class Named(EventStreamView):
    groups = ["group-{name}"]


class Requested(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def get_owner(self) -> str | None:
        return self.request.GET.get("owner")


@event_generator
async def echo(request: EventStreamRequest) -> AsyncIterator[Event]:
    sent = request.last_event_id
    yield Event(sent, comment=sent)


news = News.as_view()

urlpatterns = [
    path("named/<str:name>/", Named.as_view()),
    path("requested/", Requested.as_view()),
    path("echo/", echo),
]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store", "shared")]


@pytest.fixture
def shared(memory_store: None, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.SharedStore", "RETRY": 7000}
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    ("django.template.loaders.locmem.Loader", {"text.html": "{{ text|safe }}"})
                ]
            },
        }
    ]


# What a client sends


def in_bytes(text: str) -> bytes:
    # As it comes over the wire, where a surrogate is three bytes that are no UTF-8.
    return text.encode("utf-8", "surrogatepass")


async def ask(url: str, query: bytes = b"", headers: Any = ()) -> Request:
    request = Request(
        get_asgi_application(),
        url,
        query_string=query,
        headers=[(b"host", b"testserver"), *headers],
        server=("testserver", 80),
    )
    await request.start()
    return request


@texts
@pytest.mark.parametrize("where", ["path", "query"])
async def test_no_name_of_a_group_is_an_error_or_gets_into_a_log(
    where: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    if where == "path":
        answer = await ask(f"/named/{text}/")
    else:
        answer = await ask("/requested/", b"group=" + quote_from_bytes(in_bytes(text)).encode())
    await answer.rest()
    assert answer.status == 404
    assert_in_one_line(caplog)


def assert_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        if record.name == "django_sse":
            assert record.getMessage().isprintable()


@texts
@pytest.mark.parametrize("where", ["header", "lastEventId", "last_event_id", "owner"])
async def test_no_position_of_a_client_gets_into_its_stream(where: str, text: str) -> None:
    query, headers = b"group=news", []
    if where == "header":
        headers = [(b"last-event-id", in_bytes(text))]
    else:
        query += f"&{where}={quote_from_bytes(in_bytes(text))}".encode()
    answer = await ask("/requested/", query, headers)
    assert answer.status == 200
    await apublish("news", "last")
    assert [event.text for event in await answer.next_events()] == ["last"]
    assert answer.decoder.reconnection_time == 7000
    await answer.disconnect()


@texts
@pytest.mark.parametrize("where", ["header", "lastEventId"])
async def test_what_a_generator_says_of_its_client_is_data(where: str, text: str) -> None:
    if where == "header":
        answer = await ask("/echo/", headers=[(b"last-event-id", in_bytes(text))])
    else:
        query = f"lastEventId={quote_from_bytes(in_bytes(text))}"
        answer = await ask("/echo/", query.encode())
    said, close = await answer.rest()
    # A surrogate is one character that is none, or three, since it came as three bytes.
    assert one_for_all(said.text) == one_for_all(as_received(text))
    assert (said.event, close.event, close.json()) == (None, "close", {"reason": "complete"})
    assert answer.decoder.reconnection_time == 7000


def one_for_all(text: str) -> str:
    return re.sub("\ufffd+", "\ufffd", text)


# What is published


async def command(*arguments: str) -> None:
    await in_thread(lambda: call_command(*arguments, stdout=StringIO()))


async def send(message_type: str, **fields: Any) -> None:
    await get_channel_layer().group_send("news", {"type": message_type, **fields})


@texts
@pytest.mark.parametrize(
    "publish",
    [
        lambda text: apublish("news", text),
        lambda text: apublish("news", Event(text, comment=text)),
        lambda text: apublish_template("news", "text.html", {"text": text}),
        lambda text: command("sse_push", "news", text),
        lambda text: send("sse.event", data=text, comment=text),
        lambda text: send("news.update", text=text),
    ],
    ids=["publish", "comment", "template", "command", "message", "handler"],
)
async def test_a_text_is_one_event_of_the_same_text(
    publish: Callable[[str], Awaitable[object]], text: str
) -> None:
    async with open_stream(news) as stream:
        await publish(text)
        assert [event.text for event in await seen(stream)] == [as_received(text)]


async def seen(stream: EventReader) -> list[Event]:
    """Return what a stream shows, which is messages and nothing else."""
    last = await apublish("news", "last")
    *events, _ = await stream.until("last")
    assert stream.last_event_id == last.id
    assert stream.reconnection_time == 7000
    assert not any(event.event in ("close", "reset") for event in events)
    return events


@texts
@pytest.mark.parametrize("what", ["publish", "command", "message"])
async def test_a_type_is_refused_or_that_of_its_event(
    what: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = set(text) & set("\r\n\0")
    # The sender of a message is not told.
    errors = (InvalidEvent, CommandError) if refused and what != "message" else ()
    async with open_stream(news) as stream:
        with pytest.raises(errors) if errors else nullcontext():
            if what == "publish":
                await apublish("news", "x", event=text)
            elif what == "command":
                await command("sse_push", "news", "x", "--event", text)
            else:
                await send("sse.event", data="x", event=text)
        events = [event.event for event in await seen(stream)]
    assert events == ([] if refused else [as_received(text)])
    assert_in_one_line(caplog)


@texts
async def test_a_message_whose_type_or_fields_are_made_up_is_none(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stream(news) as stream:
        await send(text, data="x")
        await send("sse.event", data="x", **{text: "x"})
        assert await seen(stream) == []
    assert_in_one_line(caplog)


@texts
@pytest.mark.parametrize("what", ["cancel", "command"])
async def test_a_reason_is_one_close_with_that_reason(what: str, text: str) -> None:
    async with open_stream(news) as stream:
        if what == "cancel":
            await acancel("news", reason=text)
        else:
            await command("sse_cancel", "news", "--reason", text)
        [close] = await stream.rest()
        assert (close.event, stream.reconnection_time) == ("close", 7000)
        # JSON escapes line ends, so that they stay what they are.
        assert close.json() == {"reason": re.sub("[\ud800-\udfff]", "\ufffd", text)}
