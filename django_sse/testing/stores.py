"""Tests for authors of event stores: what every store has to do."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from time import time
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.db import transaction
from django.test import override_settings

from django_sse.exceptions import AlreadyProducing, GroupCancelled
from django_sse.groups.entries import (
    Entry,
    GroupState,
    Hint,
    Kind,
    Lease,
    NewEntry,
    closing_wire,
)
from django_sse.groups.names import OWNER_PREFIX
from django_sse.groups.numbering import HeadMoved, first_number
from django_sse.groups.producer_tokens import HANDED_OVER
from django_sse.groups.replay import is_lost
from django_sse.stores.base import Cursor, EventStore
from django_sse.stores.read_limits import READ_BYTES
from django_sse.testing.threads import in_thread

if TYPE_CHECKING:
    from django.test import TransactionTestCase as _TestCase
else:
    # A mixin, so that a test module that imports the contract does not run it.
    _TestCase = object

# An owner key.
OWNER: Final = OWNER_PREFIX + "0123456789abcdef" * 2

# How long to wait. This is generous: only a condition that never holds takes as long.
_SECONDS = 30
# More than a store looks through for two groups.
_MANY_GROUPS = 150


def event(group: str, text: str) -> NewEntry:
    """Return an entry that appends an event."""
    return NewEntry(group, f"data: {text}\n\n".encode())


def keyed(group: str, key: str, text: str) -> NewEntry:
    """Return an entry that appends an event with a key."""
    return NewEntry(group, f"key: {key}\ndata: {text}\n\n".encode())


def close(group: str) -> NewEntry:
    """Return an entry that cancels a group."""
    return NewEntry(group, closing_wire("over"), Kind.CLOSE)


def end(owner_key: str, reason: str) -> NewEntry:
    """Return an entry that ends an owner's streams."""
    return NewEntry(owner_key, closing_wire(reason), Kind.END)


def reopening(group: str) -> NewEntry:
    """Return an entry that reopens a cancelled group."""
    return NewEntry(group, b"", Kind.REOPEN)


def begin(group: str, producer: int, *, dead_after: float = 60) -> NewEntry:
    """Return an entry that gives a group to a producer.

    Args:
        group: The name of the group.
        producer: The producer's token.
        dead_after: After how many seconds a producer that the group already has is dead.
    """
    at = int(dead_after * 1_000_000)
    return NewEntry(group, closing_wire("interrupted"), Kind.BEGIN, at=at, producer=producer)


def produced(group: str, text: str, producer: int) -> NewEntry:
    """Return an entry that appends an event of a producer.

    Args:
        group: The name of the group.
        text: The data of the event.
        producer: The producer's token, and one more for each event that it has appended.
    """
    return event(group, text)._replace(producer=producer)


def renewal(group: str, producer: int) -> NewEntry:
    """Return an entry that says that a producer is alive."""
    return NewEntry(group, b"", Kind.RENEW, producer=producer)


def hand_over(group: str, producer: int) -> NewEntry:
    """Return an entry that leaves a group to its next producer."""
    return NewEntry(group, b"", Kind.HAND_OVER, producer=producer)


def expecting(group: str, head: int) -> NewEntry:
    """Return an entry that has all refused if the group's last number is another one."""
    return NewEntry(group, b"", Kind.EXPECT, at=head)


def lapse(lease: Lease) -> NewEntry:
    """Return an entry that closes the group of a producer that has died."""
    wire = closing_wire("interrupted")
    return NewEntry(lease.group, wire, Kind.LAPSE, at=lease.renewed, producer=lease.producer)


def texts(entries: Sequence[Entry]) -> list[str]:
    """Return the data of events that were made by ``event``."""
    return [entry.wire.decode().removeprefix("data: ").strip() for entry in entries]


class Bell:
    """A bell that remembers the hints that it was rung with."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def __call__(self, hints: Sequence[Hint]) -> None:
        self.hints += hints


async def append(store: EventStore, *entries: NewEntry) -> list[int | None]:
    """Append entries without ringing any hub. Return their numbers."""
    return await store.aappend(entries, Bell())


async def append_events(store: EventStore, *entries: NewEntry) -> list[int]:
    """Append entries, and return the numbers of those that got one."""
    return [number for number in await append(store, *entries) if number is not None]


async def changes(store: EventStore, cursor: Cursor, group: str) -> list[Hint]:
    """Return the hints that the store has for a group since the cursor was made."""
    hints, _ = await store.achanged(cursor, {group})
    if hints is None:
        # Any group may have changed: a hub reads the states.
        now = await state(store, group)
        hint = Hint(group, now.head, now.cancelled, producer=now.producer)
        return [hint] if now.head != now.origin else []
    return list(hints)


async def newest(store: EventStore, group: str, after: int = 0) -> dict[str, str]:
    """Return the data of the newest event of each key, in order, by key."""
    pairs = [
        (lines[0].removeprefix("key: "), lines[1].removeprefix("data: "))
        for entry in await store.anewest(group, after, 100)
        for lines in [entry.wire.decode().split("\n")]
    ]
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


async def state(store: EventStore, group: str) -> GroupState:
    """Return the state of one group."""
    return (await store.astates([group]))[group]


async def _until_some(look: Callable[[], Awaitable[list[Lease]]]) -> list[Lease]:
    async with asyncio.timeout(_SECONDS):
        while not (found := await look()):
            await asyncio.sleep(0.01)
    return found


def _with_store(
    test: Callable[[Any, EventStore], Awaitable[None]],
) -> Callable[[Any], Awaitable[None]]:
    """Pass a new store to a test, and close it on the event loop that it was used on."""

    @wraps(test)
    async def run(self: "EventStoreContract") -> None:
        store = await sync_to_async(self.make_store)()
        try:
            await test(self, store)
        finally:
            await store.aclose()

    return run


class EventStoreContract(_TestCase):
    """The tests that every ``EventStore`` has to pass.

    Put this class before Django's ``TransactionTestCase``, and define how a store is made::

        from django.test import TransactionTestCase
        from django_sse.testing import EventStoreContract

        class MyStoreTests(EventStoreContract, TransactionTestCase):
            def make_store(self):
                return MyStore(url="...")

    The tests run under ``manage.py test`` and under pytest-django. ``django_sse`` has to be in
    ``INSTALLED_APPS``. If the store defers to transactions of a database other than the default,
    name it in the attribute ``databases``, as in any Django test. If the store by its nature cannot
    pass a test, override that test with ``unittest.skip`` and the reason.
    """

    def make_store(self) -> EventStore:
        """Return a store without any groups.

        If ``crosses_processes`` is true, a second store made in the same test stands for the store
        of another process. It must have the groups of the first one.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define the method make_store().")

    # Groups, numbers and reading

    @_with_store
    async def test_a_group_never_published_to_is_empty_and_reading_creates_nothing(
        self, store: EventStore
    ) -> None:
        self.assertEqual(await store.aread("news", 0, 10), [])
        empty = await state(store, "news")
        self.assertEqual((empty.head, empty.cancelled), (empty.origin, False))
        self.assertFalse(is_lost(empty.origin, empty))
        _, cursor = await store.achanged(None, {"news"})
        self.assertEqual(await changes(store, cursor, "news"), [])

    @_with_store
    async def test_numbers_begin_at_the_clock_and_are_contiguous(self, store: EventStore) -> None:
        before = first_number()
        first, second = await append_events(store, event("news", "a"), event("news", "b"))
        [third] = await append_events(store, event("news", "c"))
        self.assertTrue(before <= first <= first_number(), "The first number is not the time.")
        self.assertEqual((second, third), (first + 1, first + 2))
        now = await state(store, "news")
        self.assertEqual((now.first, now.oldest, now.head), (first, first, third))
        self.assertFalse(now.cancelled)
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["a", "b", "c"])

    @_with_store
    async def test_reading_goes_on_after_a_number_and_stops_at_the_limit(
        self, store: EventStore
    ) -> None:
        numbers = await append_events(store, *(event("news", str(n)) for n in range(5)))
        read = await store.aread("news", numbers[1], 2)
        self.assertEqual([entry.number for entry in read], numbers[2:4])
        self.assertEqual(texts(read), ["2", "3"])
        self.assertEqual(await store.aread("news", numbers[4], 2), [])

    @_with_store
    async def test_reading_stops_where_it_is_enough_bytes(self, store: EventStore) -> None:
        large, small = "x" * (READ_BYTES // 3), "y"
        many = [small, large, small, large, large, "z" * 2 * READ_BYTES, small]
        numbers = await append_events(store, *(event("news", each) for each in many))
        pages, after = [], numbers[0] - 1
        while page := await store.aread("news", after, 50):
            size = sum(len(entry.wire) for entry in page[:-1])
            self.assertLess(size, READ_BYTES, "READ_BYTES were reached before the last entry.")
            pages += page
            after = page[-1].number
        self.assertEqual([entry.number for entry in pages], numbers)
        self.assertEqual(texts(pages), many)

    @_with_store
    async def test_groups_have_numbers_of_their_own(self, store: EventStore) -> None:
        numbers = await append_events(store, event("a", "1"), event("b", "1"), event("a", "2"))
        self.assertEqual(numbers[2], numbers[0] + 1)
        self.assertEqual(texts(await store.aread("a", 0, 10)), ["1", "2"])
        self.assertEqual(texts(await store.aread("b", 0, 10)), ["1"])

    @_with_store
    async def test_group_names_are_told_apart_byte_for_byte(self, store: EventStore) -> None:
        names = ["news", "News", "NEWS", "new.s", "new_s", "new-s", "n" * 99]
        # Names of tenants' groups, and the longest possible one.
        names += ["a/news", "A/news", "b/news", "a/b", "=a/news", f"{'n' * 63}/{'n' * 99}"]
        for name in names:
            await append(store, event(name, name))
        await append(store, close("News"))
        for name in names:
            entries = await store.aread(name, 0, 10)
            self.assertEqual(texts(entries)[:1], [name])
            self.assertEqual(len(entries), 2 if name == "News" else 1)
            self.assertEqual((await state(store, name)).cancelled, name == "News")

    @_with_store
    async def test_an_entry_is_read_as_it_was_appended_byte_for_byte(
        self, store: EventStore
    ) -> None:
        wire = "event: grüße\ndata: 😀\u2028\0\x7f\ndata: \n\n".encode()
        await append(store, NewEntry("news", wire))
        self.assertEqual([entry.wire for entry in await store.aread("news", 0, 10)], [wire])

    @_with_store
    async def test_an_entry_is_read_with_the_time_of_its_append(self, store: EventStore) -> None:
        await append(store, event("news", "a"))
        [entry] = await store.aread("news", 0, 10)
        # The time may come from the store's own clock.
        self.assertAlmostEqual(entry.time, time(), delta=60)

    @_with_store
    async def test_states_are_told_of_every_group_that_was_asked_for(
        self, store: EventStore
    ) -> None:
        [number] = await append_events(store, event("news", "a"))
        states = await store.astates(["news", "sport"])
        self.assertEqual(list(states), ["news", "sport"])
        self.assertEqual(states["news"].head, number)
        self.assertEqual(await sync_to_async(store.states)(["news", "sport"]), states)

    @_with_store
    async def test_the_newest_events_are_kept_and_older_ones_are_not(
        self, store: EventStore
    ) -> None:
        with override_settings(DJANGO_SSE={"HISTORY_SIZE": 20}):
            numbers = [
                number
                for n in range(60)
                for number in await append_events(store, event("news", str(n)))
            ]
            kept = texts(await store.aread("news", 0, 100))
            self.assertTrue(20 <= len(kept) <= 22, f"HISTORY_SIZE is 20, {len(kept)} are kept.")
            self.assertEqual(kept, [str(n) for n in range(60 - len(kept), 60)])
            now = await state(store, "news")
            self.assertEqual((now.first, now.head), (numbers[0], numbers[-1]))
            self.assertEqual(now.oldest, numbers[-len(kept)])

    @_with_store
    async def test_threads_append_without_losing_or_doubling_a_number(
        self, store: EventStore
    ) -> None:
        def append_twenty(name: str) -> list[int | None]:
            numbers: list[int | None] = []
            for n in range(20):
                numbers += store.append([event("news", f"{name} {n}")], Bell())
            return numbers

        by_thread = await asyncio.gather(
            *(in_thread(partial(append_twenty, name)) for name in "abcd")
        )
        numbers = sorted(number for numbers in by_thread for number in numbers if number)
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 80)))
        read = texts(await store.aread("news", 0, 100))
        for name in "abcd":
            of_thread = [text for text in read if text.startswith(name)]
            self.assertEqual(of_thread, [f"{name} {n}" for n in range(20)])

    @_with_store
    async def test_what_another_process_appended_is_read_and_told(self, store: EventStore) -> None:
        if not store.crosses_processes:
            self.skipTest("The store's crosses_processes is false.")
        _, cursor = await store.achanged(None, {"news"})
        await append(store, event("news", "a"))
        other = await sync_to_async(self.make_store)()
        try:
            [number] = await append_events(other, event("news", "b"))
        finally:
            await other.aclose()
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["a", "b"])
        self.assertEqual((await state(store, "news")).head, number)
        self.assertIn(number, [hint.head for hint in await changes(store, cursor, "news")])

    @_with_store
    async def test_a_store_that_was_closed_can_be_used_again(self, store: EventStore) -> None:
        await append(store, event("news", "a"))
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["a"])
        await store.aclose()
        await store.aclose()
        if store.crosses_processes:
            await append(store, event("news", "b"))
            self.assertEqual(texts(await store.aread("news", 0, 10)), ["a", "b"])
        else:
            await append(store, event("sport", "b"))
            self.assertEqual(texts(await store.aread("sport", 0, 10)), ["b"])

    # Ringing and changes

    @_with_store
    async def test_the_bell_is_rung_with_what_is_new(self, store: EventStore) -> None:
        bell = Bell()
        [number] = await store.aappend([event("news", "x")], bell)
        assert number is not None
        entries = (Entry(number, b"data: x\n\n"),)
        self.assertEqual(bell.hints, [Hint("news", number, cancelled=False, entries=entries)])

    @_with_store
    async def test_changes_are_told_once_the_cursor_was_made(self, store: EventStore) -> None:
        _, cursor = await store.achanged(None, {"news"})
        numbers = await append_events(store, event("news", "a"), event("news", "b"))
        hints = await changes(store, cursor, "news")
        self.assertEqual({(hint.head, hint.cancelled) for hint in hints}, {(numbers[1], False)})
        _, cursor = await store.achanged(cursor, {"news"})
        await append(store, close("news"))
        hints = await changes(store, cursor, "news")
        self.assertEqual([hint.cancelled for hint in hints], [True])

    @_with_store
    async def test_changes_are_told_of_the_groups_that_were_asked_for(
        self, store: EventStore
    ) -> None:
        _, cursor = await store.achanged(None, {"news"})
        await append(store, event("news", "a"), event("sport", "b"))
        self.assertEqual([hint.group for hint in await changes(store, cursor, "news")], ["news"])

    @_with_store
    async def test_changes_are_told_however_many_other_groups_have_changed(
        self, store: EventStore
    ) -> None:
        await append(store, event("news", "first"))
        _, cursor = await store.achanged(None, {"news", "quiet"})
        [number] = await append_events(store, event("news", "a"))
        await append(store, *(event(f"other-{n}", "b") for n in range(_MANY_GROUPS)))
        hints = await changes(store, cursor, "news")
        self.assertEqual([(hint.group, hint.head) for hint in hints], [("news", number)])
        _, cursor = await store.achanged(cursor, {"news", "quiet"})
        await append(store, close("quiet"))
        self.assertEqual([h.cancelled for h in await changes(store, cursor, "quiet")], [True])

    # The newest event of each key

    @_with_store
    async def test_the_newest_event_of_each_key_is_kept_beside_the_history(
        self, store: EventStore
    ) -> None:
        self.assertEqual(await newest(store, "prices"), {})
        with override_settings(DJANGO_SSE={"HISTORY_SIZE": 5, "HISTORY_AGE": 0.001}):
            batch = [
                keyed("prices", "a", "1"),
                keyed("prices", "b", "1"),
                keyed("prices", "a", "2"),
            ]
            await append(store, *batch, keyed("others", "a", "3"), event("prices", "no key"))
            [left_out, *_] = await append_events(
                store,
                keyed("prices", "c", "1")._replace(exclude=OWNER),
                *(event("prices", str(n)) for n in range(20)),
            )
            await asyncio.sleep(0.01)
            await store.atrim()
            await append(store, event("prices", "another"))
            self.assertEqual(await newest(store, "prices"), {"b": "1", "a": "2", "c": "1"})
            *_, entry = await store.anewest("prices", 0, 100)
            self.assertEqual((entry.number, entry.exclude), (left_out, OWNER))
            self.assertAlmostEqual(entry.time, time(), delta=60)
            await append(store, keyed("prices", "b", "2"))
            self.assertEqual(await newest(store, "prices"), {"a": "2", "c": "1", "b": "2"})
            self.assertEqual(await newest(store, "prices", left_out), {"b": "2"})
            self.assertEqual(await newest(store, "others"), {"a": "3"})

    @_with_store
    async def test_the_newest_events_of_keys_are_read_page_by_page(self, store: EventStore) -> None:
        large, small = "x" * (READ_BYTES // 2), "y"
        many = {f"key {n}": small for n in range(5)} | {f"large {n}": large for n in range(3)}
        many |= {"ключ": small, "": small, "k" * 3000: small}
        for key, text in many.items():
            await append(store, keyed("prices", key, text))
        found: dict[str, Entry] = {}
        after = pages = 0
        while page := await store.anewest("prices", after, 4):
            self.assertLessEqual(len(page), 4)
            self.assertLess(sum(len(entry.wire) for entry in page[:-1]), READ_BYTES)
            found |= {entry.wire.split(b"\n")[0][5:].decode(): entry for entry in page}
            after, pages = page[-1].number, pages + 1
        self.assertEqual(list(found), list(many))
        self.assertGreater(pages, 2)

    @_with_store
    async def test_transactions_and_producers_keep_the_newest_of_their_keys(
        self, store: EventStore
    ) -> None:
        await append(store, keyed("prices", "a", "1"))

        def publish_in_transaction() -> None:
            with transaction.atomic(using=store.using):
                store.append([keyed("prices", "a", "2"), keyed("prices", "b", "1")], Bell())
                store.append([keyed("prices", "a", "3")], Bell())

        await sync_to_async(publish_in_transaction)()
        self.assertEqual(await newest(store, "prices"), {"b": "1", "a": "3"})
        await append(store, begin("job", 700))
        await append(store, keyed("job", "done", "10 %")._replace(producer=700))
        await append(store, keyed("job", "done", "20 %")._replace(producer=701))
        self.assertEqual(await newest(store, "job"), {"done": "20 %"})

    @_with_store
    async def test_the_newest_events_of_keys_outlive_a_cancel_and_a_new_run(
        self, store: EventStore
    ) -> None:
        [number] = await append_events(store, keyed("prices", "a", "1"))
        await append(store, close("prices"), reopening("prices"))
        self.assertEqual(await newest(store, "prices"), {"a": "1"})
        begun = await store.anew_run("prices", number + 1000)
        self.assertEqual(await newest(store, "prices"), {"a": "1"})
        await append(store, keyed("prices", "a", "2"))
        self.assertEqual(await newest(store, "prices", begun.head), {"a": "2"})

    @_with_store
    async def test_keys_that_are_too_many_or_too_old_are_forgotten(self, store: EventStore) -> None:
        with override_settings(DJANGO_SSE={"MAX_KEYS": 5, "HISTORY_SIZE": 20}):
            for n in range(30):
                await append(store, keyed("prices", str(n), "1"))
            kept = list(await newest(store, "prices"))
            self.assertTrue(5 <= len(kept) <= 7, f"MAX_KEYS is 5, {len(kept)} are kept.")
            self.assertEqual(kept, [str(n) for n in range(30 - len(kept), 30)])
        with override_settings(DJANGO_SSE={"GROUP_TTL": 0.5, "HISTORY_SIZE": 20}):
            async with asyncio.timeout(_SECONDS):
                while list(await newest(store, "prices")) != ["new"]:
                    await append(store, keyed("prices", "new", "1"))
                    await asyncio.sleep(0.02)
        with override_settings(DJANGO_SSE={"MAX_KEYS": 5, "HISTORY_SIZE": 20}):
            await append(store, begin("job", 700))
            for n in range(30):
                await append(store, keyed("job", str(n), "1")._replace(producer=700 + n))
            kept = list(await newest(store, "job"))
            self.assertTrue(5 <= len(kept) <= 7, f"MAX_KEYS is 5, {len(kept)} are kept.")

    @_with_store
    async def test_keys_are_not_forgotten_for_those_of_another_group(
        self, store: EventStore
    ) -> None:
        # Without a limit of age: 0 is none, and nothing is older than the other.
        for ttl in (0, 10**15):
            with override_settings(
                DJANGO_SSE={"MAX_KEYS": 5, "HISTORY_SIZE": 20, "GROUP_TTL": ttl}
            ):
                await append(store, keyed("others", "old", "1"))
                for n in range(30):
                    await append(store, keyed("prices", str(n), "1"))
                kept = list(await newest(store, "prices"))
                self.assertTrue(5 <= len(kept) <= 7, f"MAX_KEYS is 5, {len(kept)} are kept.")
                self.assertEqual(await newest(store, "others"), {"old": "1"})

    # Cancelling and reopening

    @_with_store
    async def test_cancelling_appends_one_close_and_refuses_events(self, store: EventStore) -> None:
        await append(store, event("news", "x"), close("news"))
        self.assertEqual(await append(store, close("news")), [None])
        with self.assertRaisesRegex(GroupCancelled, "reopen"):
            await append(store, event("news", "y"))
        entries = await store.aread("news", 0, 10)
        self.assertEqual([entry.closes for entry in entries], [False, True])
        self.assertEqual(entries[1].wire, closing_wire("over"))
        now = await state(store, "news")
        self.assertTrue(now.cancelled)
        self.assertEqual(now.head, entries[1].number)

    @_with_store
    async def test_one_refused_event_refuses_the_whole_call(self, store: EventStore) -> None:
        await append(store, close("over"))
        bell = Bell()
        with self.assertRaises(GroupCancelled):
            await store.aappend([event("news", "x"), event("over", "y")], bell)
        self.assertEqual(await store.aread("news", 0, 10), [])
        self.assertEqual(bell.hints, [])

    @_with_store
    async def test_reopening_goes_on_with_numbers_and_history(self, store: EventStore) -> None:
        numbers = await append_events(store, event("news", "a"), close("news"))
        self.assertEqual(await append(store, reopening("news")), [None])
        self.assertFalse((await state(store, "news")).cancelled)
        [number] = await append_events(store, event("news", "b"))
        self.assertEqual(number, numbers[1] + 1)
        entries = await store.aread("news", 0, 10)
        self.assertEqual([entry.closes for entry in entries], [False, True, False])

    # Owners of streams

    @_with_store
    async def test_who_is_left_out_of_an_event_is_kept_with_it(self, store: EventStore) -> None:
        bell = Bell()
        left_out = NewEntry("news", b"data: a\n\n", exclude=OWNER)
        await store.aappend([left_out, event("news", "b")], bell)
        entries = await store.aread("news", 0, 10)
        self.assertEqual([entry.exclude for entry in entries], [OWNER, ""])
        # Only those that are read have a time.
        self.assertEqual(
            bell.hints[0].entries, tuple(entry._replace(time=0.0) for entry in entries)
        )

        def publish_in_transaction() -> None:
            with transaction.atomic(using=store.using):
                store.append([left_out], Bell())

        await sync_to_async(publish_in_transaction)()
        entries = await store.aread("news", entries[-1].number, 10)
        self.assertEqual([entry.exclude for entry in entries], [OWNER])

    @_with_store
    async def test_an_end_begins_an_owners_group_anew_and_its_number_is_the_time(
        self, store: EventStore
    ) -> None:
        self.assertEqual((await state(store, OWNER)).first, 0)
        _, cursor = await store.achanged(None, {OWNER})
        times = []
        for reason in ("a", "b"):
            before = first_number()
            [number] = await append_events(store, end(OWNER, reason))
            self.assertTrue(before <= number <= first_number(), "The number is not the time.")
            now = await state(store, OWNER)
            self.assertEqual((now.first, now.head, now.cancelled), (number, number, True))
            [entry] = await store.aread(OWNER, number - 1, 10)
            self.assertEqual((entry.wire, entry.closes), (closing_wire(reason), True))
            times.append(number)
        self.assertGreater(times[1], times[0])
        [kept] = await store.aread(OWNER, 0, 10)
        self.assertEqual(kept.number, times[1], "An entry older than the end was kept.")
        self.assertIn(times[1], [hint.head for hint in await changes(store, cursor, OWNER)])

    @_with_store
    async def test_an_end_that_is_written_late_has_the_time_that_it_was_ordered(
        self, store: EventStore
    ) -> None:
        ordered = first_number() - 10_000_000
        late = end(OWNER, "late")._replace(at=ordered)
        self.assertEqual(await append_events(store, late), [ordered])
        now = await state(store, OWNER)
        self.assertEqual((now.first, now.head), (ordered, ordered))
        [entry] = await store.aread(OWNER, ordered - 1, 10)
        self.assertEqual(entry.wire, closing_wire("late"))
        # Append it again, as if the answer to the first attempt were lost.
        self.assertEqual(await append_events(store, late), [])
        [number] = await append_events(store, end(OWNER, "now"))
        self.assertGreater(number, ordered + 5_000_000)
        self.assertEqual(await append_events(store, late), [])
        self.assertEqual((await state(store, OWNER)).first, number)

    @_with_store
    async def test_an_owner_who_was_let_in_again_is_not_ended_by_what_was_ordered_before(
        self, store: EventStore
    ) -> None:
        for is_ended in (False, True):
            if is_ended:
                await append_events(store, end(OWNER, "over"))
            ordered = first_number()
            await append(store, reopening(OWNER))
            self.assertEqual(
                await append_events(store, end(OWNER, "late")._replace(at=ordered)), []
            )
            now = await state(store, OWNER)
            self.assertFalse(now.cancelled)
            self.assertGreaterEqual(now.first, ordered)
        [number] = await append_events(store, end(OWNER, "over"))
        now = await state(store, OWNER)
        self.assertEqual((now.first, now.cancelled), (number, True))

    @_with_store
    async def test_an_owners_group_is_forgotten_sooner_than_others(self, store: EventStore) -> None:
        with override_settings(DJANGO_SSE={"CANCEL_TTL": 1}):
            await append(store, event("news", "a"), end(OWNER, "over"))
            # The store may trim the group meanwhile, or not.
            async with asyncio.timeout(_SECONDS):
                while (await state(store, OWNER)).first:
                    await asyncio.sleep(0.1)
            self.assertEqual(texts(await store.aread("news", 0, 10)), ["a"])

    @_with_store
    async def test_the_reason_of_an_end_is_kept_as_long_as_the_end(self, store: EventStore) -> None:
        with override_settings(DJANGO_SSE={"HISTORY_AGE": 0.2}):
            await append(store, event("news", "a"), end(OWNER, "over"))
            async with asyncio.timeout(_SECONDS):
                while await store.aread("news", 0, 10):
                    await asyncio.sleep(0.1)
                    await store.atrim()
                    await append(store, event("sport", "b"))
            [entry] = await store.aread(OWNER, 0, 10)
            self.assertEqual(entry.wire, closing_wire("over"))

    @_with_store
    async def test_nothing_is_dropped_for_its_age_where_that_is_off(
        self, store: EventStore
    ) -> None:
        with override_settings(DJANGO_SSE={"HISTORY_AGE": 0, "GROUP_TTL": 0}):
            await append(store, event("news", "a"))
            await asyncio.sleep(0.01)
            await store.atrim()
            await append(store, event("news", "b"))
            await store.atrim()
            self.assertEqual(texts(await store.aread("news", 0, 10)), ["a", "b"])

    # A store that went back

    @_with_store
    async def test_a_new_run_of_numbers_leaves_every_earlier_position_behind(
        self, store: EventStore
    ) -> None:
        """A hub asks for this if it has seen numbers that the store has forgotten since."""
        [first] = await append_events(store, event("news", "a"))
        seen = first + 1000
        begun = await store.anew_run("news", seen)
        self.assertEqual(begun, await state(store, "news"))
        self.assertGreater(begun.head, seen)
        for number in (begun.origin, first - 1, first, seen):
            self.assertTrue(is_lost(number, begun), f"{number} is not lost in {begun}.")
        self.assertFalse(is_lost(begun.head, begun))
        self.assertEqual(await append(store, event("news", "b")), [begun.head + 1])
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["b"])
        now = await state(store, "news")
        for number in (begun.origin, first - 1, first, seen):
            self.assertTrue(is_lost(number, now), f"{number} is not lost in {now}.")

    @_with_store
    async def test_of_several_hubs_that_ask_for_a_new_run_one_is_enough(
        self, store: EventStore
    ) -> None:
        [first] = await append_events(store, event("news", "a"))
        begun = await store.anew_run("news", first + 1000)
        self.assertEqual(await store.anew_run("news", first + 1000), begun)

    @_with_store
    async def test_a_group_that_is_not_behind_keeps_its_numbers(self, store: EventStore) -> None:
        [first] = await append_events(store, event("news", "a"))
        before = await state(store, "news")
        self.assertEqual(await store.anew_run("news", first), before)
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["a"])

    # Transactions

    @_with_store
    async def test_a_group_has_one_producer(self, store: EventStore) -> None:
        self.assertEqual(await append(store, begin("answer", 700)), [None])
        with self.assertRaises(AlreadyProducing):
            await append(store, begin("answer", 800))
        await append(store, begin("answer", 700), begin("another", 800))
        self.assertEqual((await state(store, "answer")).producer, 700)
        self.assertEqual((await state(store, "another")).producer, 800)

    @_with_store
    async def test_each_event_of_a_producer_counts_once(self, store: EventStore) -> None:
        await append(store, begin("answer", 700))
        batches = [
            [produced("answer", "a", 700)],
            [produced("answer", "b", 701), produced("answer", "c", 702)],
            [event("answer", "of another"), produced("answer", "d", 703)],
            [produced("answer", "e", 704)],
        ]
        for batch in batches:
            await append(store, *batch)
            # As after an append whose answer was lost.
            with self.assertRaises(GroupCancelled):
                await append(store, *batch)
        self.assertEqual(
            texts(await store.aread("answer", 0, 9)), ["a", "b", "c", "of another", "d", "e"]
        )
        self.assertEqual((await state(store, "answer")).producer, 705)

    @_with_store
    async def test_entries_of_a_producer_that_is_not_the_groups_are_refused(
        self, store: EventStore
    ) -> None:
        entries = [
            produced("answer", "b", 800),
            close("answer")._replace(producer=800),
            renewal("answer", 800),
        ]
        await append(store, event("answer", "a"))
        for entry in entries:
            with self.assertRaises(GroupCancelled):
                await append(store, entry)
        await append(store, begin("answer", 700))
        for entry in entries:
            with self.assertRaises(GroupCancelled):
                await append(store, entry)
        with self.assertRaises(GroupCancelled):
            await append(store, produced("answer", "b", 700), renewal("answer", 800))
        self.assertEqual(texts(await store.aread("answer", 0, 9)), ["a"])

    @_with_store
    async def test_a_group_that_is_cancelled_has_no_producer_and_takes_none(
        self, store: EventStore
    ) -> None:
        await append(store, begin("answer", 700), produced("answer", "a", 700))
        await append(store, close("answer"))
        self.assertEqual((await state(store, "answer")).producer, 0)
        for entry in (produced("answer", "b", 701), begin("answer", 800)):
            with self.assertRaises(GroupCancelled):
                await append(store, entry)
        await append(store, reopening("answer"))
        with self.assertRaises(GroupCancelled):
            await append(store, produced("answer", "b", 701))
        await append(store, begin("answer", 800), close("answer")._replace(producer=800))
        self.assertTrue((await state(store, "answer")).cancelled)

    @_with_store
    async def test_a_producer_that_renews_nothing_has_lapsed(self, store: EventStore) -> None:
        await append(store, begin("answer", 7), begin("ended", 8), event("plain", "a"))
        await append(store, close("ended"))
        self.assertEqual(await store.alapsed(60), [])
        [lease] = await _until_some(lambda: store.alapsed(0))
        self.assertEqual((lease.group, lease.producer), ("answer", 7))
        # It was alive after all.
        await append(store, renewal("answer", 7))
        self.assertEqual(await append(store, lapse(lease)), [None])
        self.assertFalse((await state(store, "answer")).cancelled)
        [lease] = await _until_some(lambda: store.alapsed(0))
        [number] = await append_events(store, lapse(lease), lapse(lease))
        [closing] = await store.aread("answer", 0, 9)
        self.assertEqual((closing.number, closing.closes), (number, True))
        self.assertIn(b"interrupted", closing.wire)
        self.assertEqual(await store.alapsed(0), [])

    @_with_store
    async def test_who_would_follow_a_dead_producer_closes_its_group(
        self, store: EventStore
    ) -> None:
        await append(store, begin("answer", 7), event("answer", "a"))
        await _until_some(lambda: store.alapsed(0))
        [number] = await append_events(store, begin("answer", 8, dead_after=0))
        now = await state(store, "answer")
        self.assertEqual((now.head, now.cancelled, now.producer), (number, True, 0))
        self.assertIn(b"interrupted", (await store.aread("answer", 0, 9))[-1].wire)

    @_with_store
    async def test_changes_say_who_produces(self, store: EventStore) -> None:
        await append(store, event("answer", "a"))
        _, cursor = await store.achanged(None, {"answer"})
        for entry in (begin("answer", 700), renewal("answer", 700)):
            await append(store, entry)
            told = await changes(store, cursor, "answer")
            self.assertEqual([hint.producer for hint in told], [700])
        await append(store, hand_over("answer", 700))
        told = await changes(store, cursor, "answer")
        self.assertEqual([hint.producer for hint in told], [HANDED_OVER])

    @_with_store
    async def test_a_group_that_was_handed_over_goes_on_with_the_next_producer(
        self, store: EventStore
    ) -> None:
        keeping = {"HISTORY_SIZE": 5}
        with override_settings(DJANGO_SSE=keeping):
            await append(store, begin("answer", 700))
            for n in range(15):
                await append(store, produced("answer", str(n), 700 + n))
            with self.assertRaises(GroupCancelled):
                await append(store, hand_over("answer", 700))
            await append(store, hand_over("answer", 715))
            now = await state(store, "answer")
            self.assertEqual((now.producer, now.cancelled), (HANDED_OVER, False))
            with self.assertRaises(GroupCancelled):
                await append(store, produced("answer", "late", 715))
            await append(store, begin("answer", 800), produced("answer", "15", 800))
            with self.assertRaises(AlreadyProducing):
                await append(store, begin("answer", 900))
            told = texts(await store.aread("answer", 0, 99))
            self.assertEqual(told, [str(n) for n in range(16)])

    @_with_store
    async def test_a_group_that_nobody_takes_over_lapses(self, store: EventStore) -> None:
        await append(store, begin("answer", 700), hand_over("answer", 700))
        self.assertEqual(await store.alapsed(60), [])
        [lease] = await _until_some(lambda: store.alapsed(0))
        [number] = await append_events(store, lapse(lease))
        now = await state(store, "answer")
        self.assertEqual((now.head, now.cancelled, now.producer), (number, True, 0))

    @_with_store
    async def test_all_that_a_producer_publishes_is_kept(self, store: EventStore) -> None:
        keeping = {"HISTORY_SIZE": 5, "HISTORY_AGE": 0.001, "GROUP_TTL": 3600}
        with override_settings(DJANGO_SSE=keeping):
            await append(store, begin("answer", 700))
            for n in range(15):
                await append(store, event("answer", f"of another {n}"))
                await append(store, produced("answer", str(n), 700 + n))
            await asyncio.sleep(0.01)
            await store.atrim()
            self.assertEqual(len(await store.aread("answer", 0, 99)), 30)
            await append(store, close("answer"))
            await asyncio.sleep(0.01)
            await store.atrim()
            self.assertEqual(len(await store.aread("answer", 0, 99)), 31)
            now = await state(store, "answer")
            self.assertEqual(now.oldest, now.first)
            # What is published next is another matter.
            await append(store, reopening("answer"), event("answer", "of another"))
            self.assertLessEqual(len(await store.aread("answer", 0, 99)), 6)

    @_with_store
    async def test_all_producers_that_have_died_are_told_of(self, store: EventStore) -> None:
        groups = [f"answer-{number}" for number in range(250)]
        for group in groups:
            await append(store, begin(group, 7))
        for group in groups[:120]:
            await append(store, close(group))
        # By the store's clock, the last one may have begun right now.
        await asyncio.sleep(0.01)
        leases = await store.alapsed(0)
        self.assertEqual(sorted(lease.group for lease in leases), sorted(groups[120:]))

    @_with_store
    async def test_a_producer_is_refused_inside_a_transaction(self, store: EventStore) -> None:
        def publish() -> None:
            with transaction.atomic(using=store.using):
                store.append([produced("answer", "a", 700)], Bell())

        await append(store, begin("answer", 700))
        with self.assertRaises(transaction.TransactionManagementError):
            await sync_to_async(publish)()

    @_with_store
    async def test_of_several_who_expect_the_same_head_one_appends(self, store: EventStore) -> None:
        for text in ("a", "b"):
            head = (await state(store, "news")).head
            both = event("news", text), event("told", text)
            numbers = await append(store, expecting("news", head), *both)
            self.assertEqual(numbers[0], None)
            self.assertEqual(numbers[1], (await state(store, "news")).head)
            with self.assertRaises(HeadMoved):
                await append(store, *both[1:], expecting("news", head), both[0])
        for group in ("news", "told"):
            self.assertEqual(texts(await store.aread(group, 0, 9)), ["a", "b"])

    @_with_store
    async def test_nothing_is_expected_inside_a_transaction(self, store: EventStore) -> None:
        def publish() -> None:
            with transaction.atomic(using=store.using):
                store.append([expecting("news", 0), event("news", "a")], Bell())

        with self.assertRaises(transaction.TransactionManagementError):
            await sync_to_async(publish)()

    @_with_store
    async def test_a_transaction_publishes_with_its_commit(self, store: EventStore) -> None:
        bell = Bell()

        def publish_in_transaction() -> None:
            entries = [event("news", "a"), event("news", "b")]
            with transaction.atomic(using=store.using):
                self.assertEqual(store.append(entries, bell), [None, None])
                self.assertEqual(bell.hints, [])
                now = store.states(["news"])["news"]
                self.assertEqual(now.head, now.origin)

        await sync_to_async(publish_in_transaction)()
        self.assertEqual(texts(await store.aread("news", 0, 10)), ["a", "b"])
        self.assertEqual([hint.group for hint in bell.hints], ["news"])

    @_with_store
    async def test_a_transaction_that_is_rolled_back_leaves_nothing(
        self, store: EventStore
    ) -> None:
        bell = Bell()

        def publish_and_fail() -> None:
            with transaction.atomic(using=store.using):
                store.append([event("news", "a")], bell)
                raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            await sync_to_async(publish_and_fail)()
        _, cursor = await store.achanged(None, {"news"})
        await store.achanged(cursor, {"news"})
        self.assertEqual(await store.aread("news", 0, 10), [])
        self.assertEqual(bell.hints, [])

    @_with_store
    async def test_a_transaction_is_refused_events_for_a_cancelled_group(
        self, store: EventStore
    ) -> None:
        await append(store, close("news"))

        def publish_in_transaction() -> None:
            with transaction.atomic(using=store.using):
                with self.assertRaises(GroupCancelled):
                    store.append([event("news", "a")], Bell())
                store.append([event("other", "b")], Bell())

        await sync_to_async(publish_in_transaction)()
        self.assertEqual([entry.closes for entry in await store.aread("news", 0, 10)], [True])
        self.assertEqual(texts(await store.aread("other", 0, 10)), ["b"])

    @_with_store
    async def test_an_event_committed_after_a_cancel_comes_before_a_close_of_its_own(
        self, store: EventStore
    ) -> None:
        staged, cancelled = threading.Event(), threading.Event()

        def publish_slowly() -> None:
            with transaction.atomic(using=store.using):
                store.append([event("news", "late")], Bell())
                staged.set()
                assert cancelled.wait(_SECONDS)

        publishing = asyncio.create_task(in_thread(publish_slowly))
        while not staged.is_set():
            if publishing.done():
                await publishing
            await asyncio.sleep(0.01)
        await append(store, close("news"))
        cancelled.set()
        await publishing
        entries = await store.aread("news", 0, 10)
        self.assertEqual([entry.closes for entry in entries], [True, False, True])
        self.assertEqual(entries[2].wire, closing_wire("over"))
        self.assertTrue((await state(store, "news")).cancelled)
