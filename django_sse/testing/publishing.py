"""What code has published, for tests that open no stream."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from operator import methodcaller
from typing import Any, Final, overload

from django.db import connections

from django_sse.access.owners import owner_key_of, user_key
from django_sse.event import Event, as_event, decode_block
from django_sse.groups.entries import Kind, NewEntry, OwnEntry
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.namespaces import plain_name
from django_sse.publishing import EVERYBODY
from django_sse.stores import base
from django_sse.stores.base import AfterCommit
from django_sse.testing.transactions import waiting_on

# A failure is shown where the test asserted something.
__tracebackhide__ = methodcaller("errisinstance", AssertionError)
__unittest = True

_ACTIONS: Final = {
    Kind.EVENT: "publish",
    Kind.CLOSE: "cancel",
    Kind.END: "cancel",
    Kind.LAPSE: "cancel",
    Kind.REOPEN: "reopen",
}


class _Any(Enum):
    ANY = "any"


_ANY: Final = _Any.ANY

_collections: Final[list["PublishedEvents"]] = []


@contextmanager
def published() -> Iterator["PublishedEvents"]:
    """Collect what is published, cancelled and reopened in this process during a ``with`` block, in
    whichever thread.

    What the library writes of its own accord does not count, such as the joins and leaves of views
    with ``presence``. What is published in a transaction counts at once, also in a ``TestCase``,
    whose commit never comes. If it is rolled back, it does not count.
    """
    events = PublishedEvents()
    _collections.append(events)
    base.on_append = _collect
    try:
        yield events
    finally:
        # Not `remove`, since two that are equal are not the same.
        _collections[:] = [other for other in _collections if other is not events]
        if not _collections:
            base.on_append = None


@dataclass(frozen=True)
class PublishedEvent:
    """A call of ``publish``, ``cancel`` or ``reopen``, or what such a call did to one group."""

    action: str
    """``"publish"``, ``"cancel"`` or ``"reopen"``."""

    group: str | None
    """The group; None if the streams of a user were cancelled or reopened."""

    event: str | None
    """The event's type; ``"close"`` for a cancel."""

    key: str | None
    """The event's key."""

    text: str
    """The data as clients get them."""

    owner_key: str = field(repr=False)
    excluded: str = field(repr=False)
    _rolled_back: Callable[[], bool] = field(repr=False, compare=False)

    def json(self) -> Any:
        """Return the data, parsed as JSON.

        Raises:
            ValueError: The data are no JSON.
        """
        return Event(self.text).json()

    def is_of(self, group: str | None, owner_key: str | None) -> bool:
        """Whether it is about a group for everybody, or about what an owner key stands for."""
        if owner_key is not None:
            return self.owner_key == owner_key
        return self.group is not None and self.group == group

    def __str__(self) -> str:
        of = repr(self.group) if self.group is not None else "the streams of a user or a session"
        kind = f" event={self.event!r}" if self.event and self.action == "publish" else ""
        key = f" key={self.key!r}" if self.key is not None else ""
        return f"{self.action} {of}{kind}{key} {self.text}".rstrip()


class PublishedEvents(Sequence[PublishedEvent]):
    """What was published, in order: a sequence of ``PublishedEvent``."""

    def __init__(self) -> None:
        self._all: list[PublishedEvent] = []

    def assert_published(
        self,
        group: str,
        data: Any = _ANY,
        *,
        event: Any = _ANY,
        key: Any = _ANY,
        exclude: Any = _ANY,
    ) -> PublishedEvent:
        """Return the event that was published as by ``publish`` with the same arguments.

        Arguments that are left out may be anything. Of several events, it returns the first one.

        Raises:
            AssertionError: There is no such event. What was published is shown.
        """
        text = None if data is _ANY else as_event(data).text
        if isinstance(data, Event):
            event, key = data.event, data.key
        excluded = None if exclude is _ANY else owner_key_of(exclude)
        return self._find(
            _call("publish", group, data, event=event, key=key, exclude=exclude),
            lambda one: (
                one.action == "publish"
                and one.group == group
                and text in (None, one.text)
                and event in (_ANY, one.event)
                and key in (_ANY, one.key)
                and excluded in (None, one.excluded)
            ),
        )

    def assert_cancelled(
        self, group: str | None = None, *, user: Any = EVERYBODY, reason: Any = _ANY
    ) -> PublishedEvent:
        """Return the cancel that was made as by ``cancel`` with the same arguments.

        Raises:
            AssertionError: There is none. What was published is shown.
        """
        of_user = None if user is EVERYBODY else user_key(user, group)
        return self._find(
            _call("cancel", group, user=user, reason=reason),
            lambda one: (
                one.action == "cancel"
                and one.is_of(group, of_user)
                and (reason is _ANY or one.json()["reason"] == reason)
            ),
        )

    def assert_reopened(self, group: str | None = None, *, user: Any = EVERYBODY) -> PublishedEvent:
        """Return the reopening that was made as by ``reopen`` with the same arguments.

        Raises:
            AssertionError: There is none. What was published is shown.
        """
        of_user = None if user is EVERYBODY else user_key(user, group)
        return self._find(
            _call("reopen", group, user=user),
            lambda one: one.action == "reopen" and one.is_of(group, of_user),
        )

    def assert_nothing(self, group: str | None = None) -> None:
        """Assert that nothing was published, cancelled or reopened: in a group, or at all.

        Raises:
            AssertionError: Something was. It is shown.
        """
        if any(group in (None, one.group) for one in self):
            where = "" if group is None else f" in {group!r}"
            raise AssertionError(f"Nothing was to be published{where}.\n{self}")

    def _find(self, call: str, matches: Callable[[PublishedEvent], bool]) -> PublishedEvent:
        for one in self:
            if matches(one):
                return one
        raise AssertionError(f"No {call}.\n{self}")

    @property
    def _kept(self) -> list[PublishedEvent]:
        return [one for one in self._all if not one._rolled_back()]

    @overload
    def __getitem__(self, index: int) -> PublishedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[PublishedEvent]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._kept[index]

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._kept == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        lines = [str(one) for one in self._kept] or ["nothing"]
        return "\n  ".join(["Published:", *lines])

    __repr__ = __str__


def _collect(entries: Sequence[NewEntry], waiting: AfterCommit | None) -> None:
    rolled_back = _noting_rollback(waiting) if waiting else _never
    for entry in entries:
        if entry.kind not in _ACTIONS or isinstance(entry, OwnEntry):
            continue
        is_of_owner = entry.group.startswith(OWNER_PREFIX)
        event = decode_block(entry.wire) if entry.wire else Event()
        one = PublishedEvent(
            _ACTIONS[entry.kind],
            None if is_of_owner else plain_name(entry.group),
            event.event,
            event.key,
            event.text,
            entry.group if is_of_owner else "",
            entry.exclude,
            rolled_back,
        )
        for events in _collections:
            events._all.append(one)


def _noting_rollback(waiting: AfterCommit) -> Callable[[], bool]:
    """Return what says whether the transaction was rolled back that something waits for."""
    connection = connections[waiting.store.using]
    return lambda: not waiting.is_done and waiting not in waiting_on(connection)


def _never() -> bool:
    return False


def _call(name: str, group: str | None, *data: Any, **options: Any) -> str:
    """Return how a call would be written, without what may be anything."""
    given = [repr(value) for value in (group, *data) if value is not None and value is not _ANY]
    given += [
        f"{key}={value!r}"
        for key, value in options.items()
        if value is not _ANY and value is not EVERYBODY
    ]
    return f"{name}({', '.join(given)})"
