"""Clients that have vanished are let go of: after how long, the kernel is told."""

import asyncio
import gc
import socket
from contextlib import AbstractContextManager
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.test import override_settings

from django_sse.asgi import EventStreamApplication
from django_sse.servers import dead_peers
from django_sse.servers.dead_peers import bound_silence
from django_sse.servers.sockets import borrowed
from tests.streams import until

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Only Linux has TCP_USER_TIMEOUT."
)


def milliseconds(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"SEND_TIMEOUT": 20, "HEARTBEAT": 5}, 25_000),
        ({"SEND_TIMEOUT": 20, "HEARTBEAT": 0}, 20_000),
        ({"SEND_TIMEOUT": 0.5, "HEARTBEAT": 0.25}, 750),
        ({"SEND_TIMEOUT": 2**40, "HEARTBEAT": 5}, 2**31 // 1000 * 1000),
    ],
)
@pytest.mark.parametrize("port", [int, str], ids=["int", "granian's"])
async def test_a_connection_is_let_go_of_after_a_send_timeout_and_a_heartbeat(
    settings: dict[str, Any], expected: int, port: Any
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        override_settings(DJANGO_SSE=settings),
    ):
        connection, peer = server.accept()
        other = socket.create_connection(server.getsockname())
        of_other, _ = server.accept()
        with connection, other, of_other:
            bound_silence((peer[0], port(peer[1])))
            await until(lambda: milliseconds(connection))
            assert milliseconds(connection) == expected
            assert not milliseconds(client)
            assert not milliseconds(of_other)
            await until(lambda: len(asyncio.all_tasks()) == 1)


@pytest.mark.parametrize("peer", [None, ("203.0.113.7", 0), ("", None)])
async def test_what_has_no_peer_is_left_alone(peer: Any) -> None:
    bound_silence(peer)
    assert len(asyncio.all_tasks()) == 1


@override_settings(DJANGO_SSE={"SEND_TIMEOUT": 0})
async def test_without_a_send_timeout_nothing_is_let_go_of() -> None:
    bound_silence(("127.0.0.1", 7))
    assert len(asyncio.all_tasks()) == 1


@override_settings(DJANGO_SSE={"SEND_TIMEOUT": 20, "HEARTBEAT": 5, "STORE": "memory"})
@pytest.mark.parametrize(("content_type", "expected"), [("text/event-stream", 25_000), ("", 0)])
async def test_only_the_connections_of_event_streams_are_let_go_of(
    content_type: str, expected: int
) -> None:
    async def respond(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        connection, peer = server.accept()
        with connection:
            communicator: type[Any] = ApplicationCommunicator
            request = communicator(
                EventStreamApplication(respond), {"type": "http", "client": peer}
            )
            await request.send_input({"type": "http.request"})
            await request.wait(10)
            await until(lambda: len(asyncio.all_tasks()) == 1)
            assert milliseconds(connection) == expected


@override_settings(DJANGO_SSE={"SEND_TIMEOUT": 20, "HEARTBEAT": 5})
async def test_a_socket_is_looked_for_until_it_is_found_and_then_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[int] = []

    def look(descriptor: int) -> AbstractContextManager[socket.socket]:
        looked_at.append(descriptor)
        return borrowed(descriptor)

    monkeypatch.setattr(dead_peers, "borrowed", look)
    monkeypatch.setattr(dead_peers, "_GATHER_SECONDS", 0.01)

    def no_look_is_under_way() -> bool:
        return len(asyncio.all_tasks()) == 1

    async def looked() -> list[int]:
        looked_at.clear()
        # Nobody has this address, so that all sockets are looked at.
        bound_silence(("203.0.113.7", 7))
        await until(no_look_is_under_way)
        return list(looked_at)

    # What others have left open is closed now, and not between two connections.
    gc.collect()
    with socket.create_server(("127.0.0.1", 0)) as server:
        descriptors = []
        for _ in range(2):
            with socket.create_connection(server.getsockname()):
                connection, peer = server.accept()
                with connection:
                    descriptors.append(connection.fileno())
                    assert connection.fileno() in await looked()
                    bound_silence(peer)
                    await until(no_look_is_under_way)
                    assert milliseconds(connection) == 25_000
                    assert connection.fileno() not in await looked()
        # The second connection was found although another one had its descriptor before.
        assert descriptors == descriptors[:1] * 2
