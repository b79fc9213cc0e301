"""What streams do when the process does not listen any more, which is how a shutdown begins."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from django.http import HttpRequest

from django_sse import Event, aposition, apublish
from django_sse.decorators import event_generator
from django_sse.groups.entries import GroupState
from django_sse.stores import get_store
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.stream import Phase, Stream
from django_sse.views import EventStreamView
from tests.clients import Client, connected
from tests.streams import TIMEOUT, EventReader, get, open_stream, until

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("memory_store")]

LOOK_SECONDS = 0.01


class Listener:
    """A listening socket of this process, with a client's connection unless there is none."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Stop listening, as a server does that shuts down; connections stay."""
        self._server.close()


@asynccontextmanager
async def listening(*, accepted: bool = True) -> AsyncIterator[Listener]:
    connections = []

    def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    listener = Listener(server)
    try:
        if accepted:
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            await until(lambda: connections)
            connections.append(writer)
        yield listener
    finally:
        server.close()
        for writer in connections:
            writer.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the sockets so often that a look can be waited for."""
    monkeypatch.setattr("django_sse.servers.shutdown._WATCH_SECONDS", LOOK_SECONDS)


async def some_looks() -> None:
    await asyncio.sleep(10 * LOOK_SECONDS)


async def opened() -> Client:
    """A client whose stream is open, from the beginning of its group, and is not served yet."""
    client = Client(Stream(current_hub(), {"news": 0}))
    await client.stream.open()
    return client


def assert_sent_back(client: Client) -> None:
    assert client.stream.ended.result() == "shutdown"
    assert client.decoder.reconnection_time
    assert 3000 <= client.decoder.reconnection_time <= 6000


async def test_streams_are_sent_back_after_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._FAREWELL_SECONDS", TIMEOUT)
    reads = asyncio.Event()
    async with listening() as listener:
        client = await opened()

        async def send(message: MutableMapping[str, Any]) -> None:
            await reads.wait()
            await client.send(message)

        client.stream.serve(send)
        await apublish("news", "being sent")
        await until(lambda: client.stream.is_busy)
        sending = client.stream.info.waiting_bytes
        await apublish("news", "waits")
        await until(lambda: client.stream.info.waiting_bytes > sending)
        listener.stop()
        await until(lambda: client.stream.phase is Phase.FINISHING)
        reads.set()
        await until(client.stream.ended.done)
        assert client.data == ["being sent", "waits"]
        assert_sent_back(client)


async def test_clients_are_sent_back_at_times_of_their_own() -> None:
    async with listening() as listener:
        clients = [await opened() for _ in range(50)]
        for client in clients:
            client.stream.serve(client.send)
        listener.stop()
        await until(lambda: not open_streams())
        times = [client.decoder.reconnection_time or 0 for client in clients]
        assert max(times) - min(times) > 1000
        assert len(set(times)) > 25


async def test_a_stream_that_comes_too_late_is_sent_back() -> None:
    async with listening() as listener:
        async with connected("news") as client:
            listener.stop()
            await until(client.stream.ended.done)
        async with connected("news") as late:
            await until(late.stream.ended.done)
            assert_sent_back(late)


async def test_a_stream_that_is_not_served_yet_is_sent_back_when_it_is() -> None:
    async with listening() as listener, connected("news") as other:
        client = await opened()
        listener.stop()
        await until(other.stream.ended.done)
        client.stream.serve(client.send)
        await until(client.stream.ended.done)
        assert_sent_back(client)


async def test_a_stream_that_waits_for_the_store_is_sent_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await apublish("news", "missed")

    async def hang(*args: object, **options: object) -> None:
        reading.set()
        await asyncio.Event().wait()

    reading = asyncio.Event()
    monkeypatch.setattr(get_store(), "aread", hang)
    async with listening() as listener:
        client = await opened()
        client.stream.serve(client.send)
        await asyncio.wait_for(reading.wait(), 10)
        listener.stop()
        await until(client.stream.ended.done)
        assert client.data == []
        assert_sent_back(client)


async def test_a_stream_that_is_being_replayed_ends_behind_a_whole_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.hub._FAREWELL_SECONDS", TIMEOUT)
    await apublish("news", "missed")

    async def send_slowly(message: Any) -> None:
        sending.set()
        await may_go_on.wait()
        await client.send(message)

    sending, may_go_on = asyncio.Event(), asyncio.Event()
    async with listening() as listener, connected("news") as other:
        client = await opened()
        client.stream.serve(send_slowly)
        await sending.wait()
        listener.stop()
        await until(other.stream.ended.done)
        may_go_on.set()
        await until(client.stream.ended.done)
        assert client.data == ["missed"]
        assert_sent_back(client)


async def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    async with listening() as listener:
        client = await opened()
        client.stream.serve(never)
        await apublish("news", "x")
        listener.stop()
        await until(client.stream.ended.done)
        assert client.stream.ended.result() == "send timeout"


async def test_another_socket_of_the_process_means_nothing() -> None:
    async with listening(), listening(accepted=False) as metrics, connected("news") as client:
        metrics.stop()
        await some_looks()
        await apublish("news", "goes on")
        await client.until_events(1)


async def test_a_process_that_still_listens_serves_those_that_come_back() -> None:
    async with listening(), listening() as another, connected("news") as client:
        another.stop()
        await until(client.stream.ended.done)
        async with connected("news", after=await aposition("news")) as back:
            await some_looks()
            await apublish("news", "goes on")
            await back.until_events(1)


async def test_a_default_timeout_for_sockets_is_not_put_on_those_of_others() -> None:
    before, _ = pair = socket.socketpair()
    socket.setdefaulttimeout(5)
    try:
        async with listening(), connected("news"):
            assert os.get_blocking(before.fileno())
    finally:
        socket.setdefaulttimeout(None)
        for end in pair:
            end.close()


class News(EventStreamView):
    groups = ["news"]


async def test_a_stream_in_its_request_is_sent_back_too() -> None:
    async with listening() as listener, open_stream(News.as_view()) as reader:
        assert reader.reconnection_time == 3000
        await apublish("news", "last")
        assert (await reader.next_event()).text == "last"
        listener.stop()
        assert await reader.rest() == []
        assert 3000 < (reader.reconnection_time or 0) <= 6000


async def test_a_stream_in_its_request_that_waits_for_the_store_is_sent_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = get_store()
    astates = store.astates

    async def wait(groups: Sequence[str]) -> Mapping[str, GroupState]:
        asked.set()
        await answers.wait()
        return await astates(groups)

    asked, answers = asyncio.Event(), asyncio.Event()
    # Longer than a shutdown may take.
    monkeypatch.setattr("django_sse.streaming.store_reader.READ_SECONDS", 3600)
    monkeypatch.setattr("django_sse.http.response._CHECK_SECONDS", LOOK_SECONDS)
    async with listening() as listener:
        response = await News.as_view()(get())
        monkeypatch.setattr(store, "astates", wait)
        reader = EventReader(response)
        await asyncio.wait_for(asked.wait(), 10)
        listener.stop()
        assert await reader.rest() == []
        assert 3000 <= (reader.reconnection_time or 0) <= 6000
        answers.set()


async def test_a_generator_view_is_closed_and_its_client_sent_back() -> None:
    closed = asyncio.Event()

    @event_generator
    async def forever(request: HttpRequest) -> AsyncIterator[Event]:
        try:
            yield Event("tick", id="1")
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with listening() as listener, open_stream(forever) as reader:
        assert (await reader.next_event()).text == "tick"
        listener.stop()
        assert await reader.rest() == []
        assert closed.is_set()
        assert 3000 < (reader.reconnection_time or 0) <= 6000
        # Not the terminal mark: the view runs again.
        assert reader.last_event_id == "1"
