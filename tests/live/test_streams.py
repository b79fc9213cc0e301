"""Streams of one server, from the outside: what goes over the wire, whatever serves it."""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from django_sse.groups.position import format_position, group_hash
from tests.live.client import EndOfStreamError, Response, connect, open_streams, until_open
from tests.live.servers import Server, manage, require, serve


async def push(server: Server, group: str, *lines: str, options: Sequence[str] = ()) -> list[str]:
    """Push events from another process; return their ids."""
    output = await manage(
        server.directory,
        *("sse_push", group, "-", "--id-only", *options),
        input="".join(f"{line}\n" for line in lines),
    )
    return output.split()


async def data_of(stream: Response, count: int) -> list[str]:
    return [event.text for event in await stream.events(count)]


async def test_a_client_that_comes_back_gets_exactly_what_it_missed(
    server: Server, group: str
) -> None:
    async with connect(server.port, f"/events/{group}/") as stream:
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        await stream.opened()
        [pushed] = await push(server, group, '{"title": "hi"}', options=["--event", "headline"])
        event = await stream.event()
        assert (event.event, event.json(), event.id) == ("headline", {"title": "hi"}, pushed)

    await push(server, group, "one", "two", "three")

    async with connect(server.port, f"/events/{group}/", last_event_id=pushed) as stream:
        assert await data_of(stream, 3) == ["one", "two", "three"]
        await push(server, group, "four")
        assert await data_of(stream, 1) == ["four"]


async def test_a_client_that_left_before_its_first_event_gets_what_it_missed(
    server: Server, group: str
) -> None:
    async with connect(server.port, f"/events/{group}/") as stream:
        position = (await stream.opened()).last_event_id

    await push(server, group, "one", "two")

    async with connect(server.port, f"/events/{group}/", last_event_id=position) as stream:
        assert await data_of(stream, 2) == ["one", "two"]


async def test_a_cancelled_group_ends_its_streams_and_stops_their_clients(
    server: Server, group: str
) -> None:
    async with connect(server.port, f"/events/{group}/") as stream:
        await stream.opened()
        await push(server, group, "last")
        await manage(server.directory, "sse_cancel", group, "--reason", "over")
        last, close = await stream.rest()
        assert last.text == "last"
        assert (close.event, close.json()) == ("close", {"reason": "over"})
        assert stream.complete

    position = stream.last_event_id
    async with connect(server.port, f"/events/{group}/", last_event_id=position) as response:
        assert response.status == 204

    await manage(server.directory, "sse_reopen", group)

    async with connect(server.port, f"/events/{group}/", last_event_id=position) as stream:
        assert stream.status == 200
        await stream.opened()
        await push(server, group, "again")
        assert await data_of(stream, 1) == ["again"]


async def test_a_plain_message_to_a_group_reaches_all_its_streams(
    server: Server, group: str
) -> None:
    async with (
        connect(server.port, f"/events/{group}/") as stream,
        connect(server.port, f"/events/{group}/") as another,
        connect(server.port, f"/events/?group={group}&group={group}.more") as of_two_groups,
        connect(server.port, f"/events/{group}.more/") as of_another_group,
    ):
        for opened in (stream, another, of_two_groups, of_another_group):
            await opened.opened()
        position = stream.last_event_id

        async with connect(server.port, f"/group-send/{group}/?data=x") as response:
            assert response.status == 204
        async with connect(server.port, f"/group-send/{group}.more/?data=more") as response:
            assert response.status == 204

        assert await data_of(stream, 1) == ["x"]
        assert await data_of(another, 1) == ["x"]
        assert sorted(await data_of(of_two_groups, 2)) == ["more", "x"]
        assert await data_of(of_another_group, 1) == ["more"]
        # It has no place in the group's history.
        assert stream.last_event_id == position


async def test_a_generator_view_runs_once(server: Server) -> None:
    async with connect(server.port, "/progress/?steps=3&delay=0.01") as stream:
        *steps, close = await stream.rest()
        assert [step.json() for step in steps] == [{"step": n, "steps": 3} for n in (1, 2, 3)]
        assert (close.event, close.json()) == ("close", {"reason": "complete"})
        assert stream.last_event_id == "~end"
        assert stream.complete

    async with connect(server.port, "/progress/?steps=3", last_event_id="~end") as response:
        assert response.status == 204


def nonsense(group: str, other: str) -> list[bytes]:
    """Return values of Last-Event-ID that no server gave out for this group."""
    mark = group_hash(group)
    texts = [
        *("-1", "-99999999999999999999", "0", "~", "~~~~", ".", "null", "%00", "é"),
        *("9" * 10_240, "~" * 10_240, "a.1~" * 2_560, f"{mark}.1~" * 600),
        *(f"{mark}.-1", f"{mark}.", f"{mark}.zzzzzzzzzzz", f"{mark}.0", f"{mark}.1", mark),
        *(format_position({other: number}) for number in (0, 1)),
        format_position({other: 0}).replace("~", ""),
        f"{mark}.1~{format_position({other: 0})}",
    ]
    chance = random.Random(2)
    # Without line ends, which would be HTTP.
    harmless = bytes(set(range(256)) - set(b"\r\n"))
    return [
        *(text.encode() for text in texts),
        *(bytes(chance.choices(harmless, k=chance.randint(1, 60))) for _ in range(30)),
        *(
            b"\0",
            b"\0" * 100,
            format_position({group: 1}).encode() + b"\0",
            b"\xff\xfe",
            b"\x80" * 9,
        ),
    ]


def has_control_characters(value: bytes) -> bool:
    return any(byte < 32 or byte == 127 for byte in value)


async def test_no_last_event_id_is_an_error_or_opens_another_group(
    server: Server, group: str
) -> None:
    other = f"{group}.other"
    await push(server, group, "mine", "mine")
    await push(server, other, "secret", "secret")
    async with AsyncExitStack() as stack:
        streams = []
        for value in nonsense(group, other):
            in_query = (f"/events/{group}/?lastEventId={quote(value)}", b"")
            in_header = (f"/events/{group}/", value)
            for path, header in (in_query, in_header):
                try:
                    stream = await stack.enter_async_context(
                        connect(server.port, path, last_event_id=header)
                    )
                except EndOfStreamError:
                    assert has_control_characters(header)
                    continue
                if stream.status != 200:
                    # The server's own answer to what HTTP does not allow in a header.
                    assert stream.status == 400
                    assert has_control_characters(header)
                    continue
                streams.append(await stream.opened())

        await push(server, other, "secret")
        await push(server, group, "end")
        for stream in streams:
            seen = set()
            while (event := await stream.event()).text != "end":
                seen.add((event.event, event.text))
            assert seen <= {(None, "mine"), ("reset", "{}")}


async def test_head_answers_with_the_headers_alone(server: Server, group: str) -> None:
    for path in (f"/events/{group}/", "/progress/", f"/guarded/{group}/", "/by-hand/"):
        async with connect(server.port, path, method="HEAD") as head:
            assert head.status == 200
            assert head.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            await until_open(server.port, 0)
            async with connect(server.port, path) as stream:
                assert _of_the_stream(head) == _of_the_stream(stream)
                assert "Content-Length" not in head.headers


def _of_the_stream(response: Response) -> dict[str, str]:
    """Return the headers without those of the connection, which servers set as they like."""
    own = ("date", "server", "transfer-encoding", "connection")
    return {
        name.lower(): value for name, value in response.headers.items() if name.lower() not in own
    }


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE"])
async def test_no_other_method_runs_a_generator_view(server: Server, method: str) -> None:
    token = "a" * 32
    headers = {"Cookie": f"csrftoken={token}", "X-CSRFToken": token, "Content-Length": "0"}
    async with connect(server.port, "/progress/", method=method, headers=headers) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD, POST, OPTIONS"


async def test_a_stream_cannot_be_posted_to(server: Server, group: str) -> None:
    token = "a" * 32
    headers = {"Cookie": f"csrftoken={token}", "X-CSRFToken": token, "Content-Length": "0"}
    async with connect(
        server.port, f"/events/{group}/", method="POST", headers=headers
    ) as response:
        assert response.status == 405


@pytest.mark.parametrize("name", ["no group", "a" * 100, "\0", "é", "..%2F", "a\nb"])
async def test_what_is_no_group_is_not_found(server: Server, name: str) -> None:
    async with connect(server.port, f"/events/{quote(name)}/") as response:
        assert response.status == 404
    async with connect(server.port, f"/events/?group=news&group={quote(name)}") as response:
        assert response.status == 404


async def test_a_stream_is_not_compressed_and_names_no_encoding(server: Server, group: str) -> None:
    headers = {"Accept-Encoding": "gzip"}
    async with connect(server.port, "/long-page/", headers=headers) as page:
        assert page.headers["Content-Encoding"] == "gzip"
    async with connect(server.port, f"/events/{group}/", headers=headers) as stream:
        assert "Content-Encoding" not in stream.headers
        await stream.opened()
        await push(server, group, "plain text")
        assert await data_of(stream, 1) == ["plain text"]


async def test_a_5xx_of_a_stream_of_the_projects_sends_an_event_source_back(server: Server) -> None:
    path = "/unavailable/"
    async with connect(server.port, path, headers={"Accept": "text/event-stream"}) as refusal:
        assert refusal.status == 200
        assert refusal.headers["Refused-Status"] == "503"
        assert refusal.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (await refusal.body()).startswith(b"retry: ")
        assert refusal.complete
    async with connect(server.port, path) as page:
        assert page.status == 503
        assert await page.body() == b"down for maintenance"


@pytest.mark.parametrize("name", ["uvicorn", "daphne"])
async def test_a_filter_speaks_the_language_of_each_client(
    name: str, tmp_path: Path, group: str
) -> None:
    require(name)
    languages = {"de": "Montag", "fr": "lundi", "en": "Monday", "sv": "måndag"}
    locale = "django.middleware.locale.LocaleMiddleware"
    with serve(name, tmp_path, LIVE_MIDDLEWARE=locale) as server:
        async with AsyncExitStack() as stack:
            streams: dict[str, Response] = {}
            for language, monday in languages.items():
                headers = {"Accept-Language": language}
                opening = connect(server.port, f"/localized/{group}/", headers=headers)
                streams[monday] = await (await stack.enter_async_context(opening)).opened()
            await push(server, group, "one", "two")
            for monday, stream in streams.items():
                assert await data_of(stream, 2) == [f"one {monday}", f"two {monday}"]


async def test_without_the_wrapper_a_stream_works_too(tmp_path: Path, group: str) -> None:
    require("uvicorn")
    with serve("uvicorn", tmp_path, application="tests.asgi:unwrapped") as server:
        async with (
            connect(server.port, f"/events/{group}/") as leaving,
            connect(server.port, f"/events/{group}/") as stream,
        ):
            await leaving.opened()
            await stream.opened()
            [pushed] = await push(server, group, "one")
            event = await stream.event()
            assert (event.text, event.id) == ("one", pushed)
            assert await open_streams(server.port) == 2
            leaving.reset()
            await until_open(server.port, 1)

            await push(server, group, "two")
            await manage(server.directory, "sse_cancel", group)
            two, close = await stream.rest()
            assert (two.text, close.event) == ("two", "close")
            assert stream.complete
            await until_open(server.port, 0)
