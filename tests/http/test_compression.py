"""Compressed streams: what each client decodes, and that a chunk is deflated once for all."""

import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path

from django_sse import Event, acancel, apublish, apublish_many
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_generator, event_stream_headers
from django_sse.views import EventStreamView
from tests.http.test_asgi import Request, streaming

pytestmark = [
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("memory_store"),
]

ON = override_settings(DJANGO_SSE={"STORE": "memory", "COMPRESS": True})


@event_generator
async def three(request: HttpRequest) -> AsyncIterator[Event]:
    for number in range(3):
        yield Event(str(number))


@event_stream_headers
async def of_known_length(request: HttpRequest) -> HttpResponseBase:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"data: hi\n\n"

    return StreamingHttpResponse(chunks(), headers={"Content-Length": "10"})


class Broken(EventStreamView):
    groups = ("news",)

    async def authorize(self, groups: Sequence[str]) -> None:
        raise RuntimeError("broken")


urlpatterns = [
    path("news/", EventStreamView.as_view(groups=["news"])),
    path("both/", EventStreamView.as_view(groups=["news", "sport"])),
    path("broken/", Broken.as_view()),
    path("three/", three),
    path("of-known-length/", of_known_length),
]


class GzipRequest(Request):
    """A client that accepts gzip, and reads each chunk as it comes."""

    def __init__(self, application: Any, path: str = "/news/", **scope: Any) -> None:
        headers = [(b"accept-encoding", b"br, gzip")]
        super().__init__(application, path, **{"headers": headers, **scope})
        self.inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def _take(self, message: Any) -> list[Event]:
        body = self.inflater.decompress(message.get("body", b""))
        return super()._take({**message, "body": body})


async def opened(path: str = "/news/", **scope: Any) -> GzipRequest:
    request = GzipRequest(get_asgi_application(), path, **scope)
    await request.start()
    while not request.decoder.reconnection_time:
        await request.read()
    return request


@ON
async def test_each_event_can_be_read_as_it_comes_and_the_end_is_whole() -> None:
    request = await opened()
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["vary"] == "Accept-Encoding"
    for text in ("one", "täglich", "x" * 100_000):
        await apublish("news", text)
        [event] = await request.next_events()
        assert event.text == text
    await acancel("news", reason="over")
    [close] = await request.rest()
    assert close.event == "close"
    # The checksum and the size fit, and nothing follows them.
    assert request.inflater.eof
    assert not request.inflater.unused_data


@ON
async def test_a_generator_is_compressed_too() -> None:
    request = await opened("/three/")
    assert [event.text for event in await request.rest()][:3] == ["0", "1", "2"]
    assert request.inflater.eof


@pytest.mark.parametrize(("path", "encoding"), [("/news/", "gzip"), ("/broken/", None)])
@override_settings(DJANGO_SSE={"STORE": "memory", "COMPRESS": True, "MAX_STREAMS": 1})
async def test_a_client_that_is_refused_is_told_when_to_come_back(
    path: str, encoding: str | None
) -> None:
    """By the library, or in place of what Django answers."""
    first = await opened()
    headers = [(b"accept-encoding", b"gzip"), (b"accept", b"text/event-stream")]
    request = (GzipRequest if encoding else Request)(get_asgi_application(), path, headers=headers)
    await request.start()
    assert request.headers.get("content-encoding") == encoding
    assert "refused-status" in request.headers
    await request.rest()
    assert request.decoder.reconnection_time
    assert not isinstance(request, GzipRequest) or request.inflater.eof
    await first.disconnect()


@ON
async def test_a_stream_with_chunks_of_its_own_is_compressed_too() -> None:
    request = await opened("/both/")
    await apublish_many([("news", "one"), ("sport", "two")])
    read: list[Event] = []
    while len(read) < 2:
        read += await request.next_events()
    assert [event.text for event in read] == ["one", "two"]
    await request.disconnect()


@ON
async def test_a_response_of_the_projects_own_is_as_long_as_it_says() -> None:
    headers = [(b"accept-encoding", b"gzip")]
    request = Request(get_asgi_application(), "/of-known-length/", headers=headers)
    await request.start()
    await request.rest()
    assert request.headers["content-length"] == "10"
    assert request.body == b"data: hi\n\n"


@ON
@pytest.mark.parametrize(
    "accepted", [b"", b"br", b"gzip;q=0", b"gzip; q=0.0", b"deflate, gzip;q=0.000, br", b"x-gzip"]
)
async def test_a_client_that_does_not_accept_it_gets_plain_text(accepted: bytes) -> None:
    headers = [(b"accept-encoding", accepted)]
    async with streaming(get_asgi_application(), headers=headers) as request:
        assert "content-encoding" not in request.headers
        assert request.headers["vary"] == "Accept-Encoding"


@ON
@pytest.mark.parametrize(
    "accepted",
    [
        *(b"gzip", b"GZIP;q=0.1", b"br;q=1, gzip; q=0.001"),
        # Anybody may send anything.
        *(b"gzip;q*=nothing''1", b"gzip;;", pytest.param(b"gzip;" + b"a" * 20_000, id="long")),
    ],
)
async def test_a_client_that_accepts_it_gets_it(accepted: bytes) -> None:
    request = await opened(headers=[(b"accept-encoding", accepted)])
    assert request.headers["content-encoding"] == "gzip"
    await request.disconnect()


async def test_it_is_off_at_first() -> None:
    headers = [(b"accept-encoding", b"gzip")]
    async with streaming(get_asgi_application(), headers=headers) as request:
        assert "content-encoding" not in request.headers
        assert "vary" not in request.headers


@ON
async def test_head_has_the_headers_and_no_body() -> None:
    request = GzipRequest(get_asgi_application(), method="HEAD")
    await request.start()
    assert request.headers["content-encoding"] == "gzip"
    await request.rest()
    assert request.body == b""


@ON
async def test_a_chunk_is_deflated_once_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    deflaters: list[None] = []
    compressobj = zlib.compressobj

    def count(*args: Any, **options: Any) -> Any:
        deflaters.append(None)
        return compressobj(*args, **options)

    async with AsyncExitStack() as leaving:
        requests = [await opened() for _ in range(20)]
        for request in requests:
            leaving.push_async_callback(request.disconnect)
        monkeypatch.setattr(zlib, "compressobj", count)
        await apublish_many([("news", "<p>a fragment</p>"), ("news", "<p>another</p>")])
        for request in requests:
            assert len(await request.next_events()) == 2
        assert len(deflaters) == 1
