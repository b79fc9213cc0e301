"""The machines of the rollout, and the link between them and all others."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.ports import free_port
from tests.soak.machines import Link, Machine, lack


@pytest.fixture
def machine() -> Iterator[Machine]:
    if why := lack():
        pytest.skip(why)
    with Machine() as machine:
        yield machine


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


async def test_a_machine_reaches_others_over_its_link_alone(machine: Machine) -> None:
    left: asyncio.Queue[None] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()
        await writer.wait_closed()
        left.put_nowait(None)

    server = await asyncio.start_server(answer, "127.0.0.1", port := free_port())
    link = Link(machine, latency=0.05, loss=0.5, seed="link")
    async with server:
        assert not await asyncio.to_thread(machine.run, lambda: listens(port))
        with link.up(outgoing=[port], incoming=[]):

            def ask() -> tuple[bytes, float]:
                began = time.monotonic()
                with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as there:
                    there.sendall(b"hello\n")
                    return there.recv(100), time.monotonic() - began

            said, seconds = await asyncio.to_thread(machine.run, ask)
            assert said == b"HELLO\n"
            assert seconds >= 0.15
            with link.cut():
                asking = asyncio.create_task(asyncio.to_thread(machine.run, ask))
                await asyncio.sleep(0.5)
                assert not asking.done()
            assert (await asyncio.wait_for(asking, 30))[0] == b"HELLO\n"
            # Otherwise their connections would be left open.
            async with asyncio.timeout(30):
                for _ in range(2):
                    await left.get()


async def test_others_reach_a_machine_over_its_link_alone(machine: Machine) -> None:
    port = free_port()

    def listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", port))

    with machine.run(listen) as listener:
        assert not listens(port)
        with Link(machine, latency=0, loss=0, seed="link").up(outgoing=[], incoming=[port]):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            listener.settimeout(30)
            there, _ = await asyncio.to_thread(listener.accept)
            with there:
                writer.write(b"hello")
                await writer.drain()
                assert await asyncio.to_thread(there.recv, 100) == b"hello"
            writer.close()
            await writer.wait_closed()
