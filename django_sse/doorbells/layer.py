"""The doorbell that rings over the channel layer.

Doorbells have separate Channels groups, and may carry the events. Carried events are signed, so
that whoever may write to the layer can only wake hubs.
"""

import asyncio
import atexit
import hmac
import json
import logging
import time
from collections.abc import Mapping, Sequence
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

# The purpose of the key that signs carried entries.
_PURPOSE: Final = "doorbell"

# Larger entries are read from the store instead. Channel layers are made for small messages.
_MAX_CARRIED_BYTES: Final = 64 * 1024
# How much may wait for a layer that hangs, of all groups together.
_MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
# How long a publisher waits until its doorbell is sent, and an ending process until all are.
_RING_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 2.0
# How often they check.
_CHECK_SECONDS: Final = 0.0005


class LayerDoorbell(Doorbell):
    """Rings the hubs of other processes over the channel layer."""

    def __init__(self, layer: BaseChannelLayer) -> None:
        self._layer = layer

    def ring(self, hints: Sequence[Hint]) -> None:
        super().ring(hints)
        try:
            # Use a hub's loop if there is one: layers keep one connection per loop.
            if hubs := open_listeners():
                _send_soon(hubs[0].loop, self._layer, hints)
                return
            delivery = _ringer.ring(self._layer, hints)
        except Exception as error:
            # This may last, for example if no thread can be started, and each call of `publish`
            # runs into it.
            log_seldom(
                "Ringing over the channel layer failed; hubs will ask the store.",
                level=logging.ERROR,
                exc_info=error,
            )
        else:
            # Outside of `try`: an exception that ends the publisher's own work, such as a time
            # limit, must not be swallowed.
            _ringer.wait_for(delivery)

    def receiver(self, hub: Listener) -> Receiver:
        return _LayerReceiver(self._layer, hub)


class _LayerReceiver(Receiver):
    """One channel for all doorbells of a hub, in the doorbell groups of the groups it follows."""

    def __init__(self, layer: BaseChannelLayer, hub: Listener) -> None:
        self._channel = LayerChannel(layer, self._take)
        self._hub = hub

    async def open(self) -> None:
        await self._channel.enter(doorbell_group(OWNER_PREFIX))

    async def enter(self, group: str) -> None:
        await self._channel.enter(doorbell_group(group))

    async def enter_again(self, group: str) -> None:
        await self._channel.enter_again(doorbell_group(group))

    async def leave(self, group: str) -> None:
        await self._channel.leave(doorbell_group(group))

    async def renew(self) -> None:
        await self._channel.renew()

    async def close(self) -> None:
        await self._channel.close()

    def _take(self, message: Message) -> None:
        if message.get("type") != MESSAGE_TYPE:
            return
        try:
            hint = from_message(message)
        except ValueError:
            log_seldom("A message was ignored because it is not a valid doorbell.")
        else:
            self._hub.hear_soon([hint])


def doorbell_group(group: str) -> str:
    """Return the Channels group that a group's doorbells are sent to.

    It is a separate group, so that consumers in the group itself need no handler for doorbells. All
    owners share one: entering a group for each owner would cost more than hearing of the ends of
    others' streams.
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
        # Wires are sent as text, since not every layer's serializer accepts bytes.
        "entries": [
            [entry.number, entry.wire.decode(), entry.closes, entry.exclude]
            for entry in _carried(hint.entries)
        ],
    }
    if message["entries"]:
        try:
            message["signature"] = signature(signing_key(_PURPOSE), _signed(message)).hex()
        except ImproperlyConfigured:
            # Without SECRET_KEY, which a worker's settings may lack, the doorbell only wakes hubs.
            message["entries"] = []
    return message


def from_message(message: Mapping[str, Any]) -> Hint:
    """Return the hint that a channel layer message carries.

    Entries without a valid signature are left out. They are read from the store instead.

    Raises:
        ValueError: The message is not a valid doorbell.
    """
    try:
        group = validate_group_or_owner_key(_of_type(str, message["group"]))
        head = _of_type(int, message["head"])
        cancelled = _of_type(bool, message["cancelled"])
        carried = message["entries"] if _is_signed(message) else ()
        entries = tuple(_entry(*entry) for entry in carried)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("The message is not a valid doorbell.") from error
    return Hint(group, head, cancelled, entries)


def _entry(number: Any, wire: Any, closes: Any, exclude: Any) -> Entry:
    encoded = _of_type(str, wire).encode()
    if not is_one_block_without_id(encoded):
        raise ValueError("The doorbell carries something that is not a valid event.")
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
    # The exact type, since a bool is an int as well.
    if type(value) is not wanted:
        raise TypeError
    return value


def _carried(entries: Sequence[Entry]) -> Sequence[Entry]:
    return entries if _size(entries) <= _MAX_CARRIED_BYTES else ()


def _size(entries: Sequence[Entry]) -> int:
    return sum(len(entry.wire) for entry in entries)


class _Delivery:
    """Shows whether a publisher's doorbells are done: sent or lost."""

    is_done = False


class _Relay:
    """Sends doorbells over the layer, on one loop, one at a time.

    Hints for a group that pile up meanwhile go out as one message.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Hint] = {}
        self._deliveries: list[_Delivery] = []
        self._bytes = 0
        self._sending: asyncio.Task[None] | None = None

    def add(
        self, layer: BaseChannelLayer, hints: Sequence[Hint], delivery: _Delivery | None
    ) -> None:
        for hint in hints:
            earlier = self._waiting.get(hint.group)
            merged = _merged(earlier, hint) if earlier else hint
            self._bytes -= _size(earlier.entries) if earlier else 0
            # The limits apply here, too: hints that pile up while a layer is slow must stay small.
            carried = tuple(_carried(merged.entries))
            if self._bytes + _size(carried) > _MAX_WAITING_BYTES:
                carried = ()
            self._bytes += _size(carried)
            self._waiting[hint.group] = merged._replace(entries=carried)
        if delivery:
            self._deliveries.append(delivery)
        if self._sending is None or self._sending.done():
            self._sending = spawn(self._send(layer))

    async def _send(self, layer: BaseChannelLayer) -> None:
        while self._waiting or self._deliveries:
            waiting, self._waiting = self._waiting, {}
            deliveries, self._deliveries = self._deliveries, []
            # Owners first. Otherwise what is published after a kick could overtake the kick.
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
            for delivery in deliveries:
                delivery.is_done = True


def _owners_first(waiting: tuple[str, Hint]) -> bool:
    return not waiting[0].startswith(OWNER_PREFIX)


def _merged(earlier: Hint, later: Hint) -> Hint:
    entries = earlier.entries + later.entries if earlier.entries and later.entries else ()
    # At the same head the later one counts: it says that the group was reopened.
    newest = max(later, earlier, key=lambda hint: hint.head)
    return Hint(later.group, newest.head, newest.cancelled, entries)


_relays: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Relay]] = WeakKeyDictionary()


def _send_soon(
    loop: asyncio.AbstractEventLoop,
    layer: BaseChannelLayer,
    hints: Sequence[Hint],
    delivery: _Delivery | None = None,
) -> None:
    relay = _relays.setdefault(loop, _Relay())
    loop.call_soon_threadsafe(relay.add, layer, hints, delivery)


class _Ringer:
    """Rings for a process without a hub, in a separate thread.

    A process may end abruptly: the processes that RQ, multiprocessing and Celery fork call
    ``os._exit``, which runs no ``atexit`` handlers. So a publisher waits until its doorbell is sent
    or lost. A process that serves requests does not wait: it has no time for that, and runs its
    ``atexit`` handlers.
    """

    def __init__(self) -> None:
        self._thread = LoopThread("django-sse-doorbell")
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Reset the state in the child of a fork, which serves no requests."""
        self._layer: BaseChannelLayer | None = None
        self._overdue: _Delivery | None = None
        self._serves_requests = False

    def note_request(self, **kwargs: Any) -> None:
        """Note that this process serves requests."""
        self._serves_requests = True

    def ring(self, layer: BaseChannelLayer, hints: Sequence[Hint]) -> _Delivery | None:
        """Send doorbells soon.

        Returns:
            The delivery to wait for, or None if the publisher should not wait.

        Raises:
            OSError, RuntimeError: No thread can be started now.
        """
        self._layer = layer
        # While a layer hangs, only the first publisher waits for it.
        is_overdue = self._overdue and not self._overdue.is_done
        delivery = None if self._serves_requests or is_overdue or _is_on_loop() else _Delivery()
        _send_soon(self._thread.loop(), layer, hints, delivery)
        return delivery

    def wait_for(self, delivery: _Delivery | None) -> None:
        """Wait a limited time until a publisher's doorbells are sent or lost."""
        if delivery and not _is_done_within(_RING_SECONDS, delivery):
            self._overdue = delivery

    def flush(self) -> None:
        """Wait until all doorbells are sent or lost. Called when the process ends."""
        if loop := self._thread.running:
            delivery = _Delivery()
            _send_soon(loop, self._layer, (), delivery)
            if not _is_done_within(_FLUSH_SECONDS, delivery):
                logger.warning("The process ended before its last doorbells were sent.")


def _is_done_within(seconds: float, delivery: _Delivery) -> bool:
    until = time.monotonic() + seconds
    while not delivery.is_done and time.monotonic() < until:
        # Not a lock, which cannot wake greenlets of gevent and eventlet from another thread.
        time.sleep(_CHECK_SECONDS)
    return delivery.is_done


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_ringer: Final = _Ringer()

request_started.connect(_ringer.note_request)
atexit.register(_ringer.flush)
