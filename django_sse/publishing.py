"""Functions that publish to groups, cancel them and reopen them.

They work from sync and async code, threads and commands.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.http import HttpRequest
from django.utils.asyncio import async_unsafe

from django_sse.access.owners import loaded, owner_key_of, user_group, user_key
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.event import Event
from django_sse.exceptions import (
    EventStreamError,
    GroupCancelled,
    InvalidEvent,
    PartlyPublished,
)
from django_sse.groups.entries import Kind, NewEntry, closing_wire
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import (
    acurrent_namespace,
    current_namespace,
    full_name,
    plain_name,
)
from django_sse.groups.position import format_position
from django_sse.stores import get_store
from django_sse.text import plain
from django_sse.type_checks import encode_for


class _Everybody(Enum):
    EVERYBODY = "everybody"

    def __repr__(self) -> str:
        return "EVERYBODY"


EVERYBODY: Final = _Everybody.EVERYBODY
"""The default of ``user``. ``None``, such as for a user who was not found, is an error."""

_WOULD_BLOCK: Final = "{0}() would block the running event loop: use `await a{0}()` there."


@dataclass(frozen=True, slots=True)
class Published:
    """A published event.

    ``number`` is its place in its group. It is None if the event was published inside a
    transaction, since events get their numbers after the commit.
    """

    group: str
    number: int | None
    _full_name: str = field(repr=False)

    @property
    def id(self) -> str | None:
        """The event's id in a stream of only its group, or None if it has no number yet."""
        return None if self.number is None else format_position({self._full_name: self.number})


@async_unsafe(_WOULD_BLOCK.format("publish"))
def publish(
    group: str,
    data: Any,
    *,
    event: str | None = None,
    key: str | None = None,
    exclude: Any = None,
) -> Published:
    """Publish one event to a group.

    Inside a transaction, the event exists once the transaction commits.

    Args:
        group: A Channels group name.
        data: Text, which is sent as it is; anything else, which is sent as JSON; or an ``Event``
            without an id.
        event: The event's type.
        key: What the event is about. A client that lags or comes back gets only the newest event of
            each key.
        exclude: The owner whose streams do not get the event: a user, its primary key, or a session
            (``request.session``). An anonymous user excludes nobody.

    Raises:
        InvalidGroup: Not a valid group name.
        InvalidEvent: The event cannot be published.
        TypeError, ValueError: ``exclude`` is something else.
        GroupCancelled: The group is cancelled.
        SynchronousOnlyOperation: Called on a running event loop.
        Exception: The event store could not be written.
    """
    return _append([_entry(group, data, event, key, owner_key_of(exclude))])[0]


async def apublish(
    group: str,
    data: Any,
    *,
    event: str | None = None,
    key: str | None = None,
    exclude: Any = None,
) -> Published:
    """Do what ``publish`` does, from async code."""
    owner_key = "" if exclude is None else owner_key_of(await loaded(exclude))
    return (await _aappend([_entry(group, data, event, key, owner_key)]))[0]


@async_unsafe(_WOULD_BLOCK.format("publish_to_user"))
def publish_to_user(
    user: Any, data: Any, *, event: str | None = None, key: str | None = None
) -> Published:
    """Publish one event to a user, on all her devices: to her streams of ``UserEventStreamView``.

    Args:
        user: A user, or its primary key.
        data: As for ``publish``.
        event: The event's type.
        key: As for ``publish``.

    Raises:
        TypeError: ``user`` is neither a user nor a primary key.
        ValueError: The user is not saved, or is anonymous.
        Exception: As for ``publish``.
    """
    return publish(user_group(user), data, event=event, key=key)


async def apublish_to_user(
    user: Any, data: Any, *, event: str | None = None, key: str | None = None
) -> Published:
    """Do what ``publish_to_user`` does, from async code."""
    return await apublish(user_group(await loaded(user)), data, event=event, key=key)


@async_unsafe(_WOULD_BLOCK.format("publish_template"))
def publish_template(
    group: str,
    template: str | Sequence[str],
    context: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
    *,
    event: str | None = None,
    key: str | None = None,
    exclude: Any = None,
) -> Published:
    """Publish a template, rendered by ``Event.from_template``. Otherwise like ``publish``."""
    made = Event.from_template(template, context, request, event=event, key=key)
    return publish(group, made, exclude=exclude)


async def apublish_template(
    group: str,
    template: str | Sequence[str],
    context: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
    *,
    event: str | None = None,
    key: str | None = None,
    exclude: Any = None,
) -> Published:
    """Do what ``publish_template`` does, from async code.

    The template is rendered in a thread, because it may query the database.
    """
    render = sync_to_async(Event.from_template)
    made = await render(template, context, request, event=event, key=key)
    return await apublish(group, made, exclude=exclude)


@async_unsafe(_WOULD_BLOCK.format("publish_many"))
def publish_many(events: Iterable[tuple[str, Any]], *, exclude: Any = None) -> list[Published]:
    """Publish several events to one or more groups: all of them or, if it raises, none.

    Args:
        events: Pairs of a group and an ``Event`` or its data.
        exclude: As for ``publish``, for all of the events.

    Raises:
        PartlyPublished: The store is a Redis Cluster, and some of its servers have failed. Those of
            each group are published together or not at all.
        Exception: As for ``publish``.
    """
    return _append(_entries(events, exclude))


async def apublish_many(
    events: Iterable[tuple[str, Any]], *, exclude: Any = None
) -> list[Published]:
    """Do what ``publish_many`` does, from async code."""
    return await _aappend(_entries(events, await loaded(exclude)))


def publish_with(
    events: Iterable[tuple[str, Any]],
    claim: Callable[[], None],
    remember: Callable[[list[Published]], None],
) -> list[Published]:
    """Do what ``publish_many`` does, between two writes to the database of the store.

    See ``EventStore.append_with``. Blocks: call it from synchronous code.

    Args:
        events: As for ``publish_many``.
        claim: Called before it publishes. If it raises, nothing is published.
        remember: Called with what was published.

    Raises:
        Exception: As for ``publish_many``, or what ``claim`` and ``remember`` raise.
    """
    entries, store = _entries(events, None), get_store()
    named = _with_full_names(current_namespace(), entries)
    try:
        numbers = store.append_with(
            named,
            doorbell_of(store).ring,
            claim,
            lambda numbers: remember(_published(entries, named, numbers)),
        )
    except (GroupCancelled, PartlyPublished) as error:
        raise _with_plain_names(error) from error.__cause__
    return _published(entries, named, numbers)


@async_unsafe(_WOULD_BLOCK.format("cancel"))
def cancel(group: str | None = None, *, user: Any = EVERYBODY, reason: str | None = None) -> None:
    """Cancel a group, a user's streams, or a user's streams of a group.

    The streams get ``event: close`` and end, and reconnects are answered 204: for a group, until it
    is reopened; for a user, for ``CANCEL_TTL``, but not in a session that began later. Cancelling a
    cancelled group changes nothing.

    Inside a transaction, the cancel takes effect with its commit. A user who is to come back must
    log in after that.

    If the event store cannot be written, its error is raised. A user's streams still end as soon as
    it can be written: this process keeps trying for ``CANCEL_TTL``.

    Args:
        group: A Channels group name.
        user: A user or its primary key. Without it, the group is cancelled for everybody.
        reason: Sent to the clients as ``{"reason": reason}``.

    Raises:
        InvalidGroup: Not a valid group name.
        InvalidEvent: The reason is not text, or is too long.
        TypeError, ValueError: Neither a group nor a user is given; or the user is not a user, is
            not saved, or is not logged in.
        SynchronousOnlyOperation: Called on a running event loop.
        Exception: The event store could not be written.
    """
    _append([_closing_entry(group, user, reason)])


async def acancel(
    group: str | None = None, *, user: Any = EVERYBODY, reason: str | None = None
) -> None:
    """Do what ``cancel`` does, from async code."""
    await _aappend([_closing_entry(group, await loaded(user), reason)])


def end_streams(owner_keys: Iterable[str], reason: str) -> None:
    """End the streams of owners, and refuse new ones for ``CANCEL_TTL``.

    Blocks: call it from synchronous code.

    Raises:
        Exception: The event store could not be written. This process keeps trying.
    """
    _append([NewEntry(owner_key, closing_wire(reason), Kind.END) for owner_key in owner_keys])


@async_unsafe(_WOULD_BLOCK.format("reopen"))
def reopen(group: str | None = None, *, user: Any = EVERYBODY) -> None:
    """Undo the cancel of a group, of a user's streams, or of a user's streams of a group.

    A group comes back with its numbers and its history. A user may stream again, even in a session
    that began before the cancel. Each call undoes only the ``cancel`` with the same arguments. If
    there was none, it changes nothing. Inside a transaction, it takes effect with its commit.

    Args:
        group: A Channels group name.
        user: A user or its primary key. Without it, the group is reopened for everybody.

    Raises:
        InvalidGroup: Not a valid group name.
        TypeError, ValueError: As for ``cancel``.
        SynchronousOnlyOperation: Called on a running event loop.
        Exception: The event store could not be written.
    """
    _append([_reopening_entry(group, user)])


async def areopen(group: str | None = None, *, user: Any = EVERYBODY) -> None:
    """Do what ``reopen`` does, from async code."""
    await _aappend([_reopening_entry(group, await loaded(user))])


@async_unsafe(_WOULD_BLOCK.format("position"))
def position(*groups: str) -> str:
    """Return the id at which the groups stand now, to start a stream from (``?lastEventId=``).

    Raises:
        InvalidGroup: Not a valid group name.
        SynchronousOnlyOperation: Called on a running event loop.
        Exception: The event store could not be read.
    """
    plain = [validate_group(group) for group in groups]
    namespace = current_namespace()
    states = get_store().states([full_name(namespace, group) for group in plain])
    return format_position({group: state.head for group, state in states.items()})


async def aposition(*groups: str) -> str:
    """Do what ``position`` does, from async code."""
    return await sync_to_async(position)(*groups)


def _entries(events: Iterable[tuple[str, Any]], exclude: Any) -> list[NewEntry]:
    owner_key = owner_key_of(exclude)
    return [_entry(group, data, None, None, owner_key) for group, data in events]


def _entry(group: str, data: Any, event: str | None, key: str | None, exclude: str) -> NewEntry:
    group = validate_group(group)
    return NewEntry(group, encode_for(group, data, event, key), Kind.EVENT, exclude)


def _closing_entry(group: str | None, user: Any, reason: str | None) -> NewEntry:
    name = _group_or_owner_key(group, user)
    reason = plain(reason)
    if reason is not None and not isinstance(reason, str):
        raise InvalidEvent(f"The reason must be text, not {type(reason).__name__}.")
    wire = closing_wire(reason)
    if len(wire) > conf().MAX_EVENT_BYTES:
        raise InvalidEvent("The reason is longer than DJANGO_SSE['MAX_EVENT_BYTES'] allows.")
    return NewEntry(name, wire, Kind.CLOSE if user is EVERYBODY else Kind.END)


def _reopening_entry(group: str | None, user: Any) -> NewEntry:
    return NewEntry(_group_or_owner_key(group, user), b"", Kind.REOPEN)


def _group_or_owner_key(group: str | None, user: Any) -> str:
    if user is not EVERYBODY:
        return user_key(user, group)
    if group is None:
        raise TypeError("Name a group, or give a user.")
    return validate_group(group)


def _append(entries: Sequence[NewEntry]) -> list[Published]:
    if not entries:
        return []
    store = get_store()
    named = _with_full_names(current_namespace(), entries)
    try:
        numbers = store.append(named, doorbell_of(store).ring)
    except (GroupCancelled, PartlyPublished) as error:
        raise _with_plain_names(error) from error.__cause__
    return _published(entries, named, numbers)


async def _aappend(entries: Sequence[NewEntry]) -> list[Published]:
    if not entries:
        return []
    store = get_store()
    named = _with_full_names(await acurrent_namespace(), entries)
    try:
        numbers = await store.aappend(named, doorbell_of(store).ring)
    except (GroupCancelled, PartlyPublished) as error:
        raise _with_plain_names(error) from error.__cause__
    return _published(entries, named, numbers)


def _with_full_names(namespace: str, entries: Sequence[NewEntry]) -> Sequence[NewEntry]:
    """Return the entries with the full names of the tenant's groups and owners, for the store."""
    if not namespace:
        return entries
    return [
        entry._replace(
            group=full_name(namespace, entry.group),
            exclude=full_name(namespace, entry.exclude),
        )
        for entry in entries
    ]


def _with_plain_names(error: GroupCancelled | PartlyPublished) -> EventStreamError:
    """Return the error with the names that the tenant uses for the groups."""
    if isinstance(error, PartlyPublished):
        return PartlyPublished(map(plain_name, error.published), map(plain_name, error.failed))
    group = plain_name(error.group)
    return error if group == error.group else GroupCancelled(group)


def _published(
    entries: Sequence[NewEntry], named: Sequence[NewEntry], numbers: Sequence[int | None]
) -> list[Published]:
    return [
        Published(entry.group, number, full.group)
        for entry, full, number in zip(entries, named, numbers, strict=True)
    ]
