"""The command that follows a group or a URL, in a process of its own."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest

from tests.layers import layer
from tests.live.client import act
from tests.live.servers import Server, database_of, manage, serve, start
from tests.ports import free_port

# What it shows is of processes and stores.
pytestmark = pytest.mark.once

TIMEOUT = 30.0
# Nothing but a doorbell brings an event in time.
RARELY = {"LIVE_DJANGO_SSE": json.dumps({"SYNC_INTERVAL": 3600})}
OFTEN = {"LIVE_DJANGO_SSE": json.dumps({"SYNC_INTERVAL": 0.2})}


class Listener:
    """A running command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self._output, self._notes = process.stdout, process.stderr

    async def line(self) -> str:
        """Return the next line that is printed."""
        return await self._line(self._output)

    async def note(self) -> str:
        """Return the next line of the other output."""
        return await self._line(self._notes)

    async def notes_until(self, text: str) -> list[str]:
        notes = [await self.note()]
        while text not in notes[-1]:
            notes.append(await self.note())
        return notes

    async def json(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(await self.line())
        assert fields.pop("time")
        return fields

    async def end(self) -> tuple[int, str, str]:
        """Return the exit code, and what was printed meanwhile."""
        async with asyncio.timeout(TIMEOUT):
            output, errors = await self.process.communicate()
        assert self.process.returncode is not None
        assert "Traceback" not in errors.decode()
        return self.process.returncode, output.decode(), errors.decode()

    async def _line(self, stream: asyncio.StreamReader) -> str:
        async with asyncio.timeout(TIMEOUT):
            line = await stream.readline()
        assert line, (await self.process.communicate())[1].decode()
        return line.decode().removesuffix("\n")


@asynccontextmanager
async def listening(
    directory: Path, *arguments: str, **environment: str
) -> AsyncIterator[Listener]:
    process = await start(directory, "sse_listen", *arguments, **environment)
    try:
        yield Listener(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def failure(directory: Path, *arguments: str, **environment: str) -> str:
    """Return the error with which the command ends."""
    async with listening(directory, *arguments, **environment) as listener:
        code, output, errors = await listener.end()
    assert (code, output) == (1, "")
    return errors


# A group


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with TemporaryDirectory(prefix="sse-") as directory:
        yield Path(directory)


async def test_events_of_a_group_arrive_by_its_doorbell(tmp_path: Path) -> None:
    async with listening(tmp_path, "news", **RARELY) as listener:
        assert await listener.note() == (
            "# news: nothing was ever published to it, or it was forgotten. Is its name right?"
        )
        event_id = (await manage(tmp_path, "sse_push", "news", "one\x1b[2J", "--id-only")).strip()
        time, event, id_of = (await listener.line()).split("  ")
        assert len(time) == len("12:34:56.789")
        assert (event, id_of) == ("message", f"id: {event_id}")
        # A terminal does not obey what is published.
        assert await listener.line() == "  one\\x1b[2J"
        await manage(tmp_path, "sse_push", "news", "two", "--event", "headline")
        assert (await listener.line()).split("  ")[1] == "headline"
        assert await listener.line() == "  two"
        await manage(tmp_path, "sse_cancel", "news", "--reason", "over")
        code, rest, _ = await listener.end()
        assert code == 0
        assert rest.splitlines()[1] == '  {"reason":"over"}'


async def test_past_events_are_for_programs_too(tmp_path: Path) -> None:
    ids = [
        (await manage(tmp_path, "sse_push", "news", text, "--id-only")).strip()
        for text in ("one", "two", "three")
    ]
    async with listening(tmp_path, "news", "--json", "--history", "2") as listener:
        assert await listener.note() == "# news: it is open. 3 events are kept."
        assert await listener.json() == {"id": ids[1], "event": "message", "data": "two"}
        assert await listener.json() == {"id": ids[2], "event": "message", "data": "three"}
    async with listening(tmp_path, "news", "--json", "--last-event-id", ids[0]) as listener:
        assert [(await listener.json())["data"] for _ in range(2)] == ["two", "three"]


async def test_a_cancelled_group_is_named_with_the_command_that_reopens_it(tmp_path: Path) -> None:
    await manage(tmp_path, "sse_cancel", "news")
    assert "it is cancelled, so clients are told to stop (204): sse_reopen news." in await failure(
        tmp_path, "news"
    )


async def test_an_event_that_no_doorbell_told_of_is_noted(tmp_path: Path) -> None:
    # A layer that only this process has.
    deaf = {"LIVE_CHANNEL_LAYERS": json.dumps(layer("tests.layers.OwnInMemoryLayer"))}
    async with listening(tmp_path, "news", **deaf, **OFTEN) as listener:
        await listener.note()
        noting = asyncio.create_task(listener.note())
        while not noting.done():
            await manage(tmp_path, "sse_push", "news", "late")
            assert await listener.line()
            assert await listener.line() == "  late"
        assert (await noting).startswith("# No doorbell was heard")


async def test_ctrl_c_ends_it_and_leaves_nothing_behind(short_path: Path) -> None:
    async with listening(short_path, "news") as listener:
        await listener.note()
        doorbells = Path(f"{database_of(short_path)}-doorbells")
        await manage(short_path, "sse_push", "news", "one")
        await listener.line()
        assert doorbells.exists()
        listener.process.send_signal(signal.SIGINT)
        code, _, errors = await listener.end()
        assert (code, errors) == (0, "")
        assert not doorbells.exists()


async def test_it_ends_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    async with listening(tmp_path, "news") as listener:
        await listener.note()
        listener.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        await manage(tmp_path, "sse_push", "news", "one")
        async with asyncio.timeout(TIMEOUT):
            assert await listener.process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["no group"], "'no group' is not a group name"),
        (["news", "--header", "A: b"], "--header is for URLs."),
        (["news", "--last-event-id", "7"], "The id '7' is not one of a stream of news"),
        (["http://localhost/", "--history", "3"], "--history is for groups."),
        (["http://", "--json"], "'http://' is not a URL with a host."),
    ],
)
async def test_what_it_cannot_do_is_an_error(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    assert why in await failure(tmp_path, *arguments)


async def test_a_group_of_the_memory_store_is_an_error(tmp_path: Path) -> None:
    memory = {"LIVE_DJANGO_SSE": json.dumps({"STORE": "memory"})}
    assert 'Set DJANGO_SSE = {"STORE": "database"}.' in await failure(tmp_path, "news", **memory)


# A URL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("uvicorn", tmp_path_factory.mktemp("listen")) as server:
        yield server


def url_of(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


async def test_a_url_is_followed_until_its_end(server: Server) -> None:
    url = url_of(server, "/events/by-url/")
    async with listening(server.directory, url, "--json") as listener:
        assert await listener.note() == f"# Listening to {url}."
        await act(server.port, "/publish/by-url/", data="one")
        assert (await listener.json())["data"] == "one"
        await act(server.port, "/cancel/by-url/")
        assert (await listener.json())["event"] == "close"
        assert (await listener.end())[0] == 0
    assert "It answers 204: the group, or the user, is cancelled" in await failure(
        server.directory, url
    )


async def test_a_url_is_resumed_after_its_last_id_and_when_it_says(server: Server) -> None:
    text = quote("retry: 50\nid: 7\ndata: first\n\n")
    then = quote("data: second\n\nevent: close\ndata: over\n\n")
    url = url_of(server, f"/says/?text={text}&then={then}")
    async with listening(server.directory, url, "--json") as listener:
        assert [(await listener.json())["data"] for _ in range(3)] == ["first", "second", "over"]
        code, _, notes = await listener.end()
    assert code == 0
    assert "# The stream has ended.\n# Coming back in 0.05 seconds." in notes


async def test_it_comes_back_after_a_restart_and_misses_nothing(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/events/news/"
    quick = {"LIVE_DJANGO_SSE": json.dumps({"RETRY": 100})}
    with serve("uvicorn", tmp_path, port=port, **quick) as server:
        async with listening(tmp_path, url, "--json") as listener:
            await listener.notes_until("Listening")
            await manage(tmp_path, "sse_push", "news", "one")
            assert (await listener.json())["data"] == "one"
            server.terminate()
            await listener.notes_until("The connection has failed")
            await manage(tmp_path, "sse_push", "news", "two")
            with serve("uvicorn", tmp_path, port=port, **quick):
                assert (await listener.json())["data"] == "two"
                await manage(tmp_path, "sse_cancel", "news")
                assert (await listener.json())["event"] == "close"
                assert (await listener.end())[0] == 0


async def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/events/news/"
    assert "cannot be reached: ConnectionRefusedError" in await failure(tmp_path, url)


async def test_comments_are_shown_to_who_wants_them(server: Server) -> None:
    text = quote(":hello\n\ndata: hi\n\nevent: close\ndata:\n\n")
    async with listening(
        server.directory, url_of(server, f"/says/?text={text}"), "--verbose"
    ) as listener:
        _, output, _ = await listener.end()
    assert output.splitlines()[0].endswith("  : hello")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/unauthorized/news/", "It answers 401: log in, for example by --header 'Cookie:"),
        ("/members/news/", "It answers 403: log in, for example by --header 'Cookie:"),
        ("/events/no%20name/", "It answers 404: no such URL, or an argument of it makes no valid"),
        ("/redirected/news/", "leads to /event-sources/?next=/redirected/news/. If that is a"),
        ("/event-sources/", "It answers with an HTML page (text/html)"),
        ("/says/?status=400&type=text/plain&text=No.", "perhaps the host is not one of"),
        ("/says/?status=400&type=text/plain&text=No.", "ALLOWED_HOSTS. No.\n"),
        ("/says/?type=text/csv", "It answers with text/csv, not text/event-stream."),
    ],
)
async def test_it_says_what_an_answer_means(server: Server, path: str, why: str) -> None:
    assert why in await failure(server.directory, url_of(server, path))


async def test_it_says_what_a_503_means_to_who_is_no_event_source(server: Server) -> None:
    arguments = (url_of(server, "/unavailable/"), "--header", "Accept: */*")
    assert "It answers 503: the event store is away (has `migrate` run?), or a" in await failure(
        server.directory, *arguments
    )


async def test_a_refusal_says_why_and_it_comes_back(tmp_path: Path) -> None:
    limited = json.dumps({"MAX_STREAMS": 1, "RETRY": 100})
    with serve("uvicorn", tmp_path, LIVE_DJANGO_SSE=limited) as server:
        url = url_of(server, "/events/news/")
        async with listening(tmp_path, url) as first:
            await first.notes_until("Listening")
            async with listening(tmp_path, url) as second:
                assert "Refused for now (503): the event store is away" in await second.note()
                first.process.send_signal(signal.SIGINT)
                assert (await first.end())[0] == 0
                await second.notes_until("Listening")
