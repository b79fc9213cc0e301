"""Clients that come back as an EventSource does, and keep what they have received."""

import asyncio
import json
import random
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

from django_sse.groups.position import group_hash, parse_position
from tests.live.client import EndOfStreamError, Response, connect
from tests.soak.verdict import Numbered, Stretch

# What the kernel receives for a slow client while it does not read; it doubles it.
_SMALL_WINDOW = 2048
_READING_SECONDS = (0.5, 5.0)
_PAUSING_SECONDS = (2.0, 15.0)


class Texts:
    """The texts of events, each kept once, however many clients receive it."""

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.groups: list[str] = []
        self.sent: list[float] = []

    def key(self, text: bytes) -> int:
        key = self.keys.get(text)
        if key is None:
            key = self.keys[text] = len(self.keys)
            group, _, _, sent, *_ = text.decode().split(" ")
            self.groups.append(group)
            self.sent.append(int(sent) / 1000)
        return key


class _Record:
    """A stretch of events, kept small: there are millions."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.numbers = array("q")
        self.keys = array("l")


class Client:
    """Follows some groups, on any of the servers, until they are cancelled."""

    def __init__(
        self,
        name: str,
        groups: Sequence[str],
        ports: Sequence[int],
        texts: Texts,
        *,
        slow: bool,
        seed: str,
        path: str = "/events/",
    ) -> None:
        self.name = name
        self.groups = groups
        self.closed = False
        self.reason: str | None = None
        self.over = False
        self.deliveries = 0
        self.resets = 0
        self.slow_ends = 0
        self.slowest_recovery = 0.0
        self.returns: list[float] = []
        """When it first tried to come back, each time (monotonic seconds)."""
        self.slowest_delivery = 0.0
        self.other_answers: Counter[int] = Counter()
        self._ports = ports
        self._texts = texts
        self._slow = slow
        self._pauses = slow
        self._pause_at = 0.0
        self._random = random.Random(seed)
        self._path = f"{path}?" + "&".join(f"group={group}" for group in groups)
        self._marks = {group: f"{group_hash(group)}.".encode() for group in groups}
        self._last_event_id = b""
        self._retry = 1.0
        self._records: dict[str, list[_Record]] = {group: [] for group in groups}
        self._starts_anew = True
        self._left_at: float | None = None
        self._tried_at: float | None = None
        self._response: Response | None = None
        # Whether it was told when to come back, and no position since, with which a stream begins.
        self._sent_away = False

    @property
    def position(self) -> dict[str, int]:
        """The number that it has got to, by group."""
        return parse_position(self._last_event_id.decode(), self.groups)

    def stretches(self, group: str, texts: Sequence[str]) -> list[Stretch]:
        """Return what was received of a group."""
        return [
            Stretch(
                record.start,
                [
                    Numbered(number, texts[key])
                    for number, key in zip(record.numbers, record.keys, strict=True)
                ],
            )
            for record in self._records[group]
        ]

    def events(self, group: str, texts: Sequence[str]) -> Iterator[Numbered]:
        """Return all that was received of a group."""
        for stretch in self.stretches(group, texts):
            yield from stretch.events

    def cut(self, *, reset: bool) -> None:
        """Lose the connection, with a RST or with a goodbye."""
        if self._response and reset:
            # A slow one may not have noticed yet that it has none.
            with suppress(OSError):
                self._response.reset()
        elif self._response:
            self._response.close()

    def hurry(self) -> None:
        """Read without pauses from now on."""
        self._pauses = False

    async def run(self) -> None:
        """Follow the groups until the server says that there is nothing more to come."""
        while not self.over:
            with suppress(OSError, EndOfStreamError, TimeoutError):
                await self._connect()
            self._response = None
            if self._left_at is None:
                self._left_at = time.monotonic()
            await asyncio.sleep(self._retry)
            if self._tried_at is None:
                self._tried_at = time.monotonic()

    async def _connect(self) -> None:
        async with connect(
            self._random.choice(self._ports),
            self._path,
            last_event_id=self._last_event_id,
            headers={"Accept": "text/event-stream"},
            receive_bytes=_SMALL_WINDOW if self._slow else None,
        ) as response:
            if response.status == 200:
                self._response = response
                await self._read(response)
            elif response.status == 204:
                self.over = True
            else:
                self.other_answers[response.status] += 1

    async def _read(self, response: Response) -> None:
        rest = b""
        self._sent_away = False
        while data := await response.read():
            *blocks, rest = (rest + data).split(b"\n\n")
            now = time.time()
            for block in blocks:
                self._take(block, now)
            if self._pauses and now > self._pause_at:
                await asyncio.sleep(self._random.uniform(*_PAUSING_SECONDS))
                self._pause_at = time.time() + self._random.uniform(*_READING_SECONDS)
        # Sent away for any other reason, it is told when to come back.
        if self._pauses and response.complete and not self._sent_away:
            self.slow_ends += 1

    def _take(self, block: bytes, now: float) -> None:
        head, is_event, text = block.partition(b"\ndata: ")
        if is_event and head.startswith(b"id: ") and b"\n" not in head:
            self._last_event_id = head[4:]
            self._take_event(text, now)
            return
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"retry":
                self._retry = int(value) / 1000
                self._sent_away = True
            elif name == b"id":
                self._last_event_id = value
                self._sent_away = False
                self._note_recovery()
                if self._starts_anew:
                    self._starts_anew = False
                    for group, number in self.position.items():
                        self._records[group].append(_Record(number))
            elif line == b"event: reset":
                self.resets += 1
                self._starts_anew = True
            elif line == b"event: close":
                self.closed = True
                self.reason = json.loads(text)["reason"]

    def _note_recovery(self) -> None:
        if self._left_at is not None and self._tried_at is not None:
            self.slowest_recovery = max(self.slowest_recovery, time.monotonic() - self._left_at)
            self.returns.append(self._tried_at)
            self._left_at = self._tried_at = None

    def _take_event(self, text: bytes, now: float) -> None:
        key = self._texts.key(text)
        group = self._texts.groups[key]
        record = self._records[group][-1]
        record.numbers.append(self._number(group))
        record.keys.append(key)
        self.deliveries += 1
        if not self._slow:
            self.slowest_delivery = max(self.slowest_delivery, now - self._texts.sent[key])

    def _number(self, group: str) -> int:
        """Return the number of the group in the last id; cheaper than to read the whole of it."""
        mark = self._marks[group]
        number = self._last_event_id[self._last_event_id.index(mark) + len(mark) :]
        return int(number.partition(b"~")[0], 36)
