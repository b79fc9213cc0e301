"""The hub under any order of what may happen to it: each client gets each event once, in order."""

import asyncio
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from django_sse.doorbells.base import open_listeners
from django_sse.event import Decoder, Event
from django_sse.groups.entries import Entry, Hint, Kind, NewEntry, closing_wire
from django_sse.groups.position import format_position, parse_position
from django_sse.groups.replay import join, starting_point
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.streaming import hub as hub_module
from django_sse.streaming import subscription
from django_sse.streaming.encoded_events import Batch, EncodedEvent
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.stream import Stream

pytestmark = pytest.mark.once

GROUPS = ["a", "b"]
KEPT = 5
# More turns of the loop than anything takes that does not wait for time to pass.
TURNS = 2000


class Client:
    """A client that comes back as an EventSource does, and keeps what it received.

    ``begin`` is the position from which on it has to get everything: where it began, or where it
    was told to begin anew.
    """

    def __init__(self, groups: list[str]) -> None:
        self.groups = groups
        self.begin: dict[str, int] = {}
        self.position: dict[str, int] = {}
        self.received: dict[str, list[int]] = {}
        self.closed = False
        self.reading = asyncio.Event()
        self.reading.set()
        self._stream: Stream | None = None
        self._decoder = Decoder()

    @property
    def is_open(self) -> bool:
        return self._stream is not None and not self._stream.ended.done()

    async def connect(self, older: dict[str, int] | None = None) -> None:
        """Connect as a view serves it: anew, from its last id, or from an older one."""
        hub = current_hub()
        sent = parse_position(format_position(older or self.position), self.groups)
        start = starting_point(sent, await hub.states(self.groups, sent, 0), 0)
        if start.over:
            return
        if older or not self.position or start.reset:
            self.begin = dict(start.position)
            self.received = {group: [] for group in self.groups}
        self.position = dict(start.position)
        self._decoder = Decoder()
        self._stream = Stream(hub, start.position)
        await self._stream.open()
        self._stream.serve(self._send)

    async def leave(self) -> None:
        self.reading.set()
        if self._stream:
            self._stream.end("disconnected")

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        for event in self._decoder.feed(message["body"]):
            assert not self.closed, "something after the close"
            if event.event == "close":
                self.closed = True
            else:
                group, _, serial = event.text.partition(" ")
                self.received[group].append(int(serial))
        self.position |= parse_position(self._decoder.last_event_id, self.groups)


class QuietStore(MemoryStore):
    """The memory store, whose doorbells a test rings itself."""

    def add(self, entry: NewEntry) -> Hint:
        [hint] = self._append([entry])[1]
        return hint


class HubMachine(RuleBasedStateMachine):
    """Publishers, doorbells and clients, one step at a time, on a loop of its own."""

    clients: Bundle[Client] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.settings = override_settings(
            CHANNEL_LAYERS={},
            DJANGO_SSE={
                "STORE": f"{__name__}.{QuietStore.__name__}",
                "HISTORY_SIZE": KEPT,
                "SYNC_INTERVAL": 60,
                "BACKLOG_BYTES": 400,
            },
        )
        self.settings.enable()
        # Each hint has a turn of its own, between which all else may happen.
        self.hearing = patch.object(hub_module, "_HEARING_SECONDS", 0.0)
        self.hearing.start()
        store = get_store()
        assert isinstance(store, QuietStore)
        self.store = store
        self.runner = asyncio.Runner()
        self.runner.get_loop().set_exception_handler(self._note_failure)
        self.failures: list[str] = []
        self.all: list[Client] = []
        self.late: list[Hint] = []
        # The number of each of a group's events, in the order of their serial numbers.
        self.numbers: dict[str, list[int]] = {group: [] for group in GROUPS}

    def _note_failure(self, loop: object, context: dict[str, Any]) -> None:
        self.failures.append(f"{context['message']}: {context.get('exception')!r}")

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.runner.run(coroutine)

    def ring(self, hints: list[Hint]) -> None:
        for listener in open_listeners():
            listener.hear_soon(hints)

    # Publishers

    @rule(
        group=st.sampled_from(GROUPS),
        count=st.integers(1, 3),
        doorbell=st.sampled_from(
            ["rings", "rings", "is late", "is lost", "rings twice", "is bare"]
        ),
    )
    def publish(self, group: str, count: int, doorbell: str) -> None:
        if self.store.states([group])[group].cancelled:
            return
        hints = []
        for _ in range(count):
            serial = len(self.numbers[group])
            hints.append(self.store.add(NewEntry(group, Event(f"{group} {serial}").encode())))
            self.numbers[group].append(hints[-1].head)
        self._tell(hints, doorbell)

    @rule(
        group=st.sampled_from(GROUPS),
        doorbell=st.sampled_from(["rings", "is late", "is lost", "rings twice"]),
    )
    def cancel(self, group: str, doorbell: str) -> None:
        entry = NewEntry(group, closing_wire(None), Kind.CLOSE)
        self._tell([self.store.add(entry)], doorbell)

    @rule(
        group=st.sampled_from(GROUPS),
        doorbell=st.sampled_from(["rings", "is late", "is lost", "rings twice"]),
    )
    def reopen(self, group: str, doorbell: str) -> None:
        self._tell([self.store.add(NewEntry(group, b"", Kind.REOPEN))], doorbell)

    def _tell(self, hints: list[Hint], doorbell: str) -> None:
        match doorbell:
            case "rings":
                self.ring(hints)
            case "is late":
                self.late += hints
            case "rings twice":
                self.ring(hints)
                self.ring(hints)
            case "is bare":
                self.ring([Hint(hint.group, hint.head, hint.cancelled) for hint in hints])

    @rule(chance=st.randoms(use_true_random=False))
    def ring_late(self, chance: Random) -> None:
        hints, self.late = self.late, []
        chance.shuffle(hints)
        self.ring(hints)

    # Clients

    @rule(target=clients, groups=st.sampled_from([["a"], ["b"], ["a", "b"]]))
    def arrive(self, groups: list[str]) -> Client:
        client = Client(groups)
        self.all.append(client)
        self.run(client.connect())
        return client

    @rule(client=clients, turns=st.integers(0, 3))
    def leave_and_come_back(self, client: Client, turns: int) -> None:
        self.run(client.leave())
        self.run(turn(turns))
        if not client.closed:
            self.run(client.connect())

    @rule(client=clients, back=st.integers(1, 2 * KEPT))
    def come_back_from_an_older_position(self, client: Client, back: int) -> None:
        self.run(client.leave())
        if not client.closed and client.position:
            older = {group: max(number - back, 0) for group, number in client.position.items()}
            self.run(client.connect(older))

    @rule(client=clients)
    def leave(self, client: Client) -> None:
        self.run(client.leave())

    @rule(client=clients)
    def stop_reading(self, client: Client) -> None:
        client.reading.clear()

    @rule(client=clients)
    def read_again(self, client: Client) -> None:
        client.reading.set()

    @rule(turns=st.integers(1, 20))
    def wait(self, turns: int) -> None:
        self.run(turn(turns))

    # What has to be true

    @invariant()
    def each_client_has_got_each_event_up_to_its_position_once_and_in_order(self) -> None:
        assert not self.failures
        for client in self.all:
            for group, received in client.received.items():
                begin, position = client.begin[group], client.position[group]
                assert received == self._serials(group, begin, position), group

    def _serials(self, group: str, after: int, last: int) -> list[int]:
        numbers = self.numbers[group]
        return [serial for serial, number in enumerate(numbers) if after < number <= last]

    def teardown(self) -> None:
        try:
            for client in self.all:
                client.reading.set()
            self.run(self._catch_up())
            self.each_client_has_got_each_event_up_to_its_position_once_and_in_order()
        finally:
            for client in self.all:
                self.run(client.leave())
            self.run(until_nothing_is_left())
            self.runner.close()
            self.hearing.stop()
            self.settings.disable()

    async def _catch_up(self) -> None:
        """Let hubs compare themselves with the store, as they do at each interval; wait until
        every open client has got all there is, and streams of cancelled groups alone have ended."""
        for listener in open_listeners():
            listener.compare_soon()
        for _ in range(TURNS):
            if not any(client.is_open and self._lacks_something(client) for client in self.all):
                return
            await asyncio.sleep(0)
        raise AssertionError("Some clients did not get all there is, or did not end.")

    def _lacks_something(self, client: Client) -> bool:
        states = self.store.states(client.groups)
        return all(state.cancelled for state in states.values()) or any(
            received != self._serials(group, client.begin[group], states[group].head)
            for group, received in client.received.items()
        )


async def turn(times: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(times):
        await asyncio.sleep(0)


async def until_nothing_is_left() -> None:
    async with asyncio.timeout(10):
        while open_streams() or asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)


def run_machine(examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        HubMachine,
        settings=settings(
            max_examples=examples,
            phases=phases or tuple(Phase),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_each_client_gets_each_event_once_and_in_order_or_a_reset() -> None:
    run_machine(250)


def skipping_one(after: int, entries: list[Entry]) -> tuple[Sequence[Entry], bool]:
    joined, gap = join(after, entries)
    return joined[1:] or joined, gap


def blind_to_gaps(after: int, entries: list[Entry]) -> tuple[list[Entry], bool]:
    return [entry for entry in entries if entry.number > after], False


@pytest.mark.parametrize("fault", [skipping_one, blind_to_gaps])
def test_an_event_that_is_lost_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "join", fault)
    with pytest.raises(AssertionError):
        run_machine(500, Phase.generate)


def test_an_event_that_comes_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(self: Batch, events: list[EncodedEvent]) -> None:
        whole(self, [*events, *events])

    whole = Batch.__init__
    monkeypatch.setattr(Batch, "__init__", doubled)
    with pytest.raises(AssertionError):
        run_machine(500, Phase.generate)
