"""The doorbell that rings over the channel layer.

Doorbells have Channels groups of their own, and may carry the events. What is carried is signed:
whoever may write to the layer can wake hubs, and do nothing else.
"""

import asyncio
import atexit
import hmac
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started

from django_sse.concurrency.forks import forget_in_child
from django_sse.concurrency.tasks import must_propagate, spawn
from django_sse.concurrency.threads import LoopThread
from django_sse.doorbells.base import Doorbell, Listener, Receiver, open_listeners
from django_sse.doorbells.layer_channel import LAYER_SECONDS, LayerChannel, Message
from django_sse.event import is_one_block_without_id
from django_sse.groups.entries import Entry, Hint
from django_sse.groups.keys import accepted_keys, signature, signing_key
from django_sse.groups.names import OWNER_PREFIX, validate_group_or_owner_key
from django_sse.logs import log_seldom, logger

Value = TypeVar("Value")

MESSAGE_TYPE: Final = "sse.doorbell"

# What the key is for that carried entries are signed with.
_PURPOSE: Final = "doorbell"

# Larger entries are read from the store instead; channel layers are made for small messages.
_MAX_CARRIED_BYTES: Final = 64 * 1024
# What waits for a layer that hangs, of all groups together.
_MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
# How long a publisher waits for its doorbell to go out, and a process that ends for its last ones.
_RING_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0
# They look whether it has this often.
_LOOK_SECONDS: Final = 0.0005


class LayerDoorbell(Doorbell):
    """Rings the hubs of other processes over the channel layer."""

    def __init__(self, layer: BaseChannelLayer) -> None:
        self._layer = layer

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        try:
            # On a hub's loop where there is one: layers keep their connections by loop.
            if hubs := open_listeners():
                _send_soon(hubs[0].loop, self._layer, hints)
                return
            ringing = _ringer.ring(self._layer, hints)
        except Exception as error:
            # It may stay so, as where no thread can be had, and others publish, too.
            log_seldom(
                "Ringing over the channel layer failed; hubs will find out by themselves.",
                level=logging.ERROR,
                exc_info=error,
            )
        else:
            # Outside: what ends the publisher's own work, such as a time limit, is not to be lost.
            _ringer.wait_for(ringing)

    def receiver(self, hub: Listener) -> Receiver:
        return _LayerReceiver(self._layer, hub)


class _LayerReceiver(Receiver):
    """One channel for all doorbells of a hub, in the groups of those that it follows."""

    def __init__(self, layer: BaseChannelLayer, hub: Listener) -> None:
        self._mailbox = LayerChannel(layer, self._take)
        self._hub = hub

    async def open(self) -> None:
        await self._mailbox.enter(doorbell_group(OWNER_PREFIX))

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
    group = OWNER_PREFIX if group.startswith(OWNER_PREFIX) else group
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
        try:
            message["signature"] = signature(signing_key(_PURPOSE), _signed(message)).hex()
        except ImproperlyConfigured:
            # Without SECRET_KEY, as in a worker's settings, it wakes and no more.
            message["entries"] = []
    return message


def from_message(message: Mapping[str, Any]) -> Hint:
    """Return the hint that a channel layer message carries, without entries that are not signed:
    they are read from the store instead.

    Raises:
        ValueError: It carries none.
    """
    try:
        group = validate_group_or_owner_key(_of_type(str, message["group"]))
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


class _Delivery:
    """Whether doorbells that were rung are gone: sent, or lost."""

    is_gone = False


class _Relay:
    """Sends doorbells over the layer, on one loop, one at a time.

    What piles up for a group meanwhile goes out as one message.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Hint] = {}
        self._ringing: list[_Delivery] = []
        self._bytes = 0
        self._sending: asyncio.Task[None] | None = None

    def add(
        self, layer: BaseChannelLayer, hints: Sequence[Hint], ringing: _Delivery | None
    ) -> None:
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
        if ringing:
            self._ringing.append(ringing)
        if self._sending is None or self._sending.done():
            self._sending = spawn(self._send(layer))

    async def _send(self, layer: BaseChannelLayer) -> None:
        while self._waiting or self._ringing:
            waiting, self._waiting = self._waiting, {}
            ringing, self._ringing = self._ringing, []
            # Owners first: what was published before a kick may be joined by what came after it.
            for group, hint in sorted(waiting.items(), key=_owners_first):
                self._bytes -= _size(hint.entries)
                try:
                    message = to_message(hint)
                    async with asyncio.timeout(LAYER_SECONDS):
                        await layer.group_send(doorbell_group(group), message)
                except BaseException as error:
                    if must_propagate(error):
                        raise
                    log_seldom("The doorbell of group %r was lost.", group, exc_info=error)
            for one in ringing:
                one.is_gone = True


def _owners_first(waiting: tuple[str, Hint]) -> bool:
    return not waiting[0].startswith(OWNER_PREFIX)


def _merged(earlier: Hint, later: Hint) -> Hint:
    entries = earlier.entries + later.entries if earlier.entries and later.entries else ()
    # The later one at the same head: a group was reopened.
    newest = max(later, earlier, key=lambda hint: hint.head)
    return Hint(later.group, newest.head, newest.cancelled, entries)


_relays: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Relay]] = WeakKeyDictionary()


def _send_soon(
    loop: asyncio.AbstractEventLoop,
    layer: BaseChannelLayer,
    hints: Sequence[Hint],
    ringing: _Delivery | None = None,
) -> None:
    relay = _relays.setdefault(loop, _Relay())
    loop.call_soon_threadsafe(relay.add, layer, hints, ringing)


class _Ringer:
    """Rings for a process without a hub, in a thread of its own.

    A process may end without a word: those that RQ, multiprocessing and Celery fork leave by
    ``os._exit``, which runs no ``atexit``. So who publishes waits until its doorbell is gone; but
    not in a process that serves requests, which has no time for it, and ends in good order.
    """

    def __init__(self) -> None:
        self._thread = LoopThread("django-sse-doorbell")
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew, as the child of a fork: it serves no requests."""
        self._layer: BaseChannelLayer | None = None
        self._late: _Delivery | None = None
        self._serves_requests = False

    def note_request(self, **kwargs: Any) -> None:
        """Note that this process serves requests."""
        self._serves_requests = True

    def ring(self, layer: BaseChannelLayer, hints: Sequence[Hint]) -> _Delivery | None:
        """Send doorbells soon; return what to wait for, if anything.

        Raises:
            OSError, RuntimeError: No thread can be had now.
        """
        self._layer = layer
        # While a layer hangs, not everyone who publishes waits for it.
        is_late = self._late and not self._late.is_gone
        ringing = None if self._serves_requests or is_late or _is_on_loop() else _Delivery()
        _send_soon(self._thread.loop(), layer, hints, ringing)
        return ringing

    def wait_for(self, ringing: _Delivery | None) -> None:
        """Wait a little until doorbells are gone."""
        if ringing and not _is_gone_within(_RING_SECONDS, ringing):
            self._late = ringing

    def flush(self) -> None:
        """Wait until all that was rung is gone, as the process ends."""
        if loop := self._thread.running:
            ringing = _Delivery()
            _send_soon(loop, self._layer, (), ringing)
            if not _is_gone_within(_FLUSH_SECONDS, ringing):
                logger.warning("The process ended before its last doorbells went out.")


def _is_gone_within(seconds: float, ringing: _Delivery) -> bool:
    until = time.monotonic() + seconds
    while not ringing.is_gone and time.monotonic() < until:
        # No lock: gevent's and eventlet's greenlets cannot be woken from another thread by one.
        time.sleep(_LOOK_SECONDS)
    return ringing.is_gone


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_ringer: Final = _Ringer()

request_started.connect(_ringer.note_request)
atexit.register(_ringer.flush)
