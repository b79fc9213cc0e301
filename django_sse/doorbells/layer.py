"""The doorbell that rings over the channel layer.

Doorbells have Channels groups of their own, and may carry the events. What is carried is signed:
whoever may write to the layer can wake hubs, and do nothing else.
"""

import asyncio
import atexit
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from threading import Lock, Thread
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from channels.layers import BaseChannelLayer

from django_sse.doorbells.base import Doorbell, Listener, Receiver, hearing
from django_sse.event import is_one_block_without_id
from django_sse.keys import accepted_keys, signature, signing_key
from django_sse.logs import log_seldom, logger
from django_sse.mailbox import LAYER_SECONDS, Mailbox, Message
from django_sse.stores.base import MARK, Entry, Hint, validate_group_or_mark
from django_sse.tasks import spawn

Value = TypeVar("Value")

MESSAGE_TYPE: Final = "sse.doorbell"

# What the key is for that carried entries are signed with.
_PURPOSE: Final = "doorbell"

# Larger entries are read from the store instead; channel layers are made for small messages.
_MAX_CARRIED_BYTES: Final = 64 * 1024
# What waits for a layer that hangs, of all groups together.
_MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
# How long a process that ends waits for its last doorbells to go out.
_FLUSH_SECONDS: Final = 2.0


class LayerDoorbell(Doorbell):
    """Rings the hubs of other processes over the channel layer."""

    def __init__(self, layer: BaseChannelLayer) -> None:
        self._layer = layer

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        try:
            loop = _loop_to_ring_on()
            loop.call_soon_threadsafe(_relay(loop).add, self._layer, hints)
        except Exception:
            logger.exception(
                "Ringing over the channel layer failed; hubs will find out by themselves."
            )

    def receiver(self, hub: Listener) -> Receiver:
        return _LayerReceiver(self._layer, hub)


class _LayerReceiver(Receiver):
    """One channel for all doorbells of a hub, in the groups of those that it follows."""

    def __init__(self, layer: BaseChannelLayer, hub: Listener) -> None:
        self._mailbox = Mailbox(layer, self._take)
        self._hub = hub

    async def open(self) -> None:
        await self._mailbox.enter(doorbell_group(MARK))

    async def enter(self, group: str) -> None:
        await self._mailbox.enter(doorbell_group(group))

    async def enter_again(self, group: str) -> None:
        await self._mailbox.enter_again(doorbell_group(group))

    async def leave(self, group: str) -> None:
        await self._mailbox.leave(doorbell_group(group))

    async def renew(self) -> None:
        await self._mailbox.renew()

    async def close(self) -> None:
        await self._mailbox.close()

    def _take(self, message: Message) -> None:
        if message.get("type") != MESSAGE_TYPE:
            return
        try:
            hint = from_message(message)
        except ValueError:
            log_seldom("A message that is no doorbell was ignored.")
        else:
            self._hub.hear_soon([hint])


def doorbell_group(group: str) -> str:
    """Return the Channels group that a group's doorbells are sent to.

    It is one of their own, so that consumers in the group itself need no handler for them. Those of
    all owners share one: entering one for each would cost more than hearing of others' ends.
    """
    group = MARK if group.startswith(MARK) else group
    return f"sse.{blake2b(group.encode(), digest_size=16).hexdigest()}"


def to_message(hint: Hint) -> dict[str, Any]:
    """Return the channel layer message that carries a hint."""
    message = {
        "type": MESSAGE_TYPE,
        "group": hint.group,
        "head": hint.head,
        "cancelled": hint.cancelled,
        # As text: not every layer's serializer takes bytes.
        "entries": [
            [entry.number, entry.wire.decode(), entry.closes, entry.exclude]
            for entry in _carried(hint.entries)
        ],
    }
    if message["entries"]:
        message["signature"] = signature(signing_key(_PURPOSE), _signed(message)).hex()
    return message


def from_message(message: Mapping[str, Any]) -> Hint:
    """Return the hint that a channel layer message carries, without entries that are not signed:
    they are read from the store instead.

    Raises:
        ValueError: It carries none.
    """
    try:
        group = validate_group_or_mark(_of_type(str, message["group"]))
        head = _of_type(int, message["head"])
        cancelled = _of_type(bool, message["cancelled"])
        carried = message["entries"] if _is_signed(message) else ()
        entries = tuple(_entry(*entry) for entry in carried)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("This message is no doorbell.") from error
    return Hint(group, head, cancelled, entries)


def _entry(number: Any, wire: Any, closes: Any, exclude: Any) -> Entry:
    encoded = _of_type(str, wire).encode()
    if not is_one_block_without_id(encoded):
        raise ValueError("What this doorbell carries is no event.")
    return Entry(_of_type(int, number), encoded, _of_type(bool, closes), _of_type(str, exclude))


def _signed(message: Mapping[str, Any]) -> bytes:
    fields = [message[key] for key in ("group", "head", "cancelled", "entries")]
    return json.dumps(fields, separators=(",", ":")).encode()


def _is_signed(message: Mapping[str, Any]) -> bool:
    given = message.get("signature")
    if not isinstance(given, str):
        return False
    signed = _signed(message)
    valid = [signature(key, signed).hex().encode() for key in accepted_keys(_PURPOSE)]
    return any(hmac.compare_digest(given.encode(), other) for other in valid)


def _of_type(wanted: type[Value], value: Any) -> Value:
    # Exactly: a bool is no number.
    if type(value) is not wanted:
        raise TypeError
    return value


def _carried(entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries if _size(entries) <= _MAX_CARRIED_BYTES else ()


def _size(entries: Sequence[Entry]) -> int:
    return sum(len(entry.wire) for entry in entries)


class _Relay:
    """Sends doorbells over the layer, on one loop, one at a time.

    What piles up for a group meanwhile goes out as one message.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Hint] = {}
        self._bytes = 0
        self._sending: asyncio.Task[None] | None = None

    async def idle(self) -> None:
        while self._sending and not self._sending.done():
            await asyncio.wait([self._sending])

    def add(self, layer: BaseChannelLayer, hints: Sequence[Hint]) -> None:
        for hint in hints:
            earlier = self._waiting.get(hint.group)
            merged = _merged(earlier, hint) if earlier else hint
            self._bytes -= _size(earlier.entries) if earlier else 0
            # Cut here, too: what piles up while a layer is slow must stay small.
            carried = tuple(_carried(merged.entries))
            if self._bytes + _size(carried) > _MAX_WAITING_BYTES:
                carried = ()
            self._bytes += _size(carried)
            self._waiting[hint.group] = replace(merged, entries=carried)
        if self._sending is None or self._sending.done():
            self._sending = spawn(self._send(layer))

    async def _send(self, layer: BaseChannelLayer) -> None:
        while self._waiting:
            group = next(iter(self._waiting))
            hint = self._waiting.pop(group)
            self._bytes -= _size(hint.entries)
            try:
                message = to_message(hint)
                async with asyncio.timeout(LAYER_SECONDS):
                    await layer.group_send(doorbell_group(group), message)
            except Exception as error:
                log_seldom("The doorbell of group %r was lost.", group, exc_info=error)


def _merged(earlier: Hint, later: Hint) -> Hint:
    entries = earlier.entries + later.entries if earlier.entries and later.entries else ()
    # The later one at the same head: a group was reopened.
    newest = max(later, earlier, key=lambda hint: hint.head)
    return Hint(later.group, newest.head, newest.cancelled, entries)


_lock: Final = Lock()
_relays: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Relay]] = WeakKeyDictionary()
_own_loop: tuple[int, asyncio.AbstractEventLoop] | None = None


def _relay(loop: asyncio.AbstractEventLoop) -> _Relay:
    with _lock:
        return _relays.setdefault(loop, _Relay())


def _loop_to_ring_on() -> asyncio.AbstractEventLoop:
    # A hub's where there is one: layers keep their connections by loop.
    hubs = hearing()
    return hubs[0].loop if hubs else _loop_of_own()


def _loop_of_own() -> asyncio.AbstractEventLoop:
    """Return the loop of a thread that rings for a process without a hub."""
    global _own_loop
    with _lock:
        if _own_loop is None or _own_loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            Thread(target=loop.run_forever, name="django-sse-doorbell", daemon=True).start()
            _own_loop = os.getpid(), loop
            atexit.register(_flush, os.getpid(), loop)
        return _own_loop[1]


def _flush(pid: int, loop: asyncio.AbstractEventLoop) -> None:
    relay = _relays.get(loop)
    if relay is None or pid != os.getpid():
        return
    try:
        asyncio.run_coroutine_threadsafe(relay.idle(), loop).result(_FLUSH_SECONDS)
    except TimeoutError:
        logger.warning("The process ended before its last doorbells went out.")
