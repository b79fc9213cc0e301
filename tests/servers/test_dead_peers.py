"""Clients that have vanished are let go of: after how long, the kernel is told."""

import asyncio
import socket
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.test import override_settings

from django_sse.asgi import EventStreamApplication
from django_sse.servers.dead_peers import bound_silence
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
