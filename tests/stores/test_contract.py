"""Every store keeps the contract, and a store that breaks it is told apart."""

import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.test import TransactionTestCase, override_settings

from django_sse.conf import conf
from django_sse.event import key_of
from django_sse.groups.entries import Entry, GroupState, Hint, Kind, Lease, NewEntry, Ring
from django_sse.stores.base import Cursor, EventStore
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore, _Group
from django_sse.stores.redis import RedisStore
from django_sse.testing import EventStoreContract
from tests import mysql, postgresql
from tests.redis import RedisCluster, RedisSentinels, RedisServer


class MemoryStoreTests(EventStoreContract, TransactionTestCase):
    def make_store(self) -> MemoryStore:
        return MemoryStore()


class SQLiteTests(EventStoreContract, TransactionTestCase):
    def make_store(self) -> DatabaseStore:
        return DatabaseStore()

    @unittest.skip("SQLite lets one transaction write at a time.")
    async def test_an_event_committed_after_a_cancel_comes_before_a_close_of_its_own(self) -> None:
        """Its transaction would keep the cancel from being written."""


@unittest.skipUnless(postgresql.binaries(), "PostgreSQL is not installed.")
class PostgreSQLTests(EventStoreContract, TransactionTestCase):
    databases = {"default", postgresql.ALIAS}

    def make_store(self) -> DatabaseStore:
        return DatabaseStore(using=postgresql.ALIAS)


@pytest.mark.once
@unittest.skipUnless(mysql.binaries(), "MariaDB is not installed.")
class MySQLTests(EventStoreContract, TransactionTestCase):
    databases = {"default", mysql.ALIAS}

    def make_store(self) -> DatabaseStore:
        return DatabaseStore(using=mysql.ALIAS)


class RedisStoreTests(EventStoreContract, TransactionTestCase):
    durable = False

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.url = redis_server.url

    def make_store(self) -> RedisStore:
        return RedisStore(url=self.url, durable=self.durable)


@pytest.mark.once
class DurableRedisStoreTests(RedisStoreTests):
    durable = True


@pytest.mark.once
class ValkeyStoreTests(RedisStoreTests):
    """Through redis-py, on the newest Valkey."""

    @pytest.fixture(autouse=True)
    def _server(self, valkey_server: RedisServer) -> None:
        self.url = valkey_server.url


@pytest.mark.once
class RedisClusterTests(RedisStoreTests):
    """On three masters, each with a replica."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_cluster: RedisCluster) -> None:
        self.url = redis_cluster.url


# Some are enough: what is behind the Sentinels is one server.
_ON_SENTINELS = (
    "test_changes_are_told_once_the_cursor_was_made",
    "test_numbers_begin_at_the_clock_and_are_contiguous",
    "test_of_several_hubs_that_ask_for_a_new_run_one_is_enough",
    "test_one_refused_event_refuses_the_whole_call",
    "test_threads_append_without_losing_or_doubling_a_number",
    "test_what_another_process_appended_is_read_and_told",
)


@pytest.mark.once
class RedisSentinelTests(TransactionTestCase):
    """On the master that Sentinels watch."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_sentinels: RedisSentinels) -> None:
        self.url = redis_sentinels.url

    def make_store(self) -> RedisStore:
        return RedisStore(url=self.url)


for _name in _ON_SENTINELS:
    setattr(RedisSentinelTests, _name, getattr(EventStoreContract, _name))


# Stores that break the contract, and the tests that tell


class DropsTheLastOfSeveral(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        numbers, hints = super()._append(entries, **kwargs)
        if len(entries) > 1:
            self._groups[entries[-1].group].entries.pop()
        return numbers, hints


class NumbersFromOne(MemoryStore):
    """Numbers that a group which was forgotten would have again."""

    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("django_sse.groups.numbering.first_number", lambda: 1)
            return super()._append(entries, **kwargs)


class NumbersAnewAfterReopening(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        for entry in entries:
            if entry.kind is Kind.REOPEN and entry.group in self._groups:
                self._groups[entry.group].head = 0
        return super()._append(entries, **kwargs)


class ForgetsThatItWasCancelled(MemoryStore):
    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        states = super().states(groups)
        return {
            group: GroupState(state.first, state.head, state.oldest)
            for group, state in states.items()
        }


class RefusesNothing(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        return super()._append(entries, staged=True)

    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Iterable[Sequence[Hint]]]:
        return lambda: [self._append(entries)[1]]


class AppendsOneAfterTheOther(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        if len(entries) == 1:
            return super()._append(entries, **kwargs)
        done = [self._append([entry], **kwargs) for entry in entries]
        return [n for numbers, _ in done for n in numbers], [h for _, hints in done for h in hints]


class IgnoresCase(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        lower = [NewEntry(entry.group.lower(), entry.wire, entry.kind) for entry in entries]
        return super()._append(lower, **kwargs)

    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        return {
            group: super(IgnoresCase, self).states([group.lower()])[group.lower()]
            for group in groups
        }

    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        return await super().aread(group.lower(), after, limit)


class CountsAllGroupsAsOne(AppendsOneAfterTheOther):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        if len(entries) == 1:
            head = max((group.head for group in self._groups.values()), default=0)
            self._groups.setdefault(entries[0].group, _Group(entries[0].group)).head = head
        return super()._append(entries, **kwargs)


class StripsWhitespace(MemoryStore):
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        entries = await super().aread(group, after, limit)
        return [Entry(entry.number, entry.wire.strip(), entry.closes) for entry in entries]


class TellsNoTime(MemoryStore):
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        return [entry._replace(time=0.0) for entry in await super().aread(group, after, limit)]


class ReadsFromTheNumberOn(MemoryStore):
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        return await super().aread(group, after - 1, limit)


class ReadsAsMuchAsThereIs(MemoryStore):
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        page: list[Entry] = []
        while some := await super().aread(group, page[-1].number if page else after, limit):
            page += some
        return page[:limit]


class KeepsNoKeys(MemoryStore):
    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        read = await super().aread(group, after, limit)
        return list({key_of(entry.wire): entry for entry in read}.values())


class ReadsAllKeys(MemoryStore):
    async def anewest(self, group: str, after: int, limit: int) -> list[Entry]:
        return await super().anewest(group, after, 1000)


class ForgetsKeysOfTransactions(MemoryStore):
    def _stage(self, entries: Sequence[NewEntry]) -> Callable[[], Iterable[Sequence[Hint]]]:
        bare = [entry._replace(wire=b"data: 3\n\n") for entry in entries]
        return super()._stage(bare)


class ForgetsKeysWithTheRun(MemoryStore):
    async def anew_run(self, group: str, above: int) -> GroupState:
        self._groups.pop(group)
        return await super().anew_run(group, above)


class ForgetsKeysOfOthers(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        answer = super()._append(entries, **kwargs)
        if len(self._groups[entries[0].group].newest) >= conf().MAX_KEYS:
            for name, group in self._groups.items():
                if name != entries[0].group:
                    group.newest.clear()
        return answer


class LeavesOutGroupsWithoutEvents(MemoryStore):
    def states(self, groups: Sequence[str]) -> dict[str, GroupState]:
        states = super().states(groups)
        return {group: state for group, state in states.items() if state.head}


class KeepsEverything(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        with override_settings(DJANGO_SSE={}):
            return super()._append(entries, **kwargs)

    def _trimmed(self, name: str) -> _Group:
        return self._groups.get(name) or _Group()


class CreatesWhatItReads(MemoryStore):
    async def aread(self, group: str, after: int, limit: int) -> list[Entry]:
        if group not in self._groups:
            self._append([NewEntry(group, b"data: created\n\n")])
        return await super().aread(group, after, limit)


class TellsNoChange(MemoryStore):
    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint], Cursor]:
        return [], None


class TellsOfEveryGroup(MemoryStore):
    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint], Cursor]:
        return await super().achanged(cursor, self._groups)


class TellsOfTheNewestChanges(MemoryStore):
    async def achanged(
        self, cursor: Cursor, groups: Collection[str]
    ) -> tuple[Iterable[Hint], Cursor]:
        hints, cursor = await super().achanged(cursor, self._groups)
        return [hint for hint in list(hints)[:100] if hint.group in groups], cursor


class RingsNobody(MemoryStore):
    def _append_now(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        return super()._append_now(entries, lambda hints: None)


class ActsAtOnceInTransactions(MemoryStore):
    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        numbers, hints = self._append(entries)
        ring(hints)
        return numbers


class LocksNothing(MemoryStore):
    """As one that reads the head, then writes what it made of it."""

    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        group = self._groups.setdefault(entries[0].group, _Group(entries[0].group))
        head = group.head
        time.sleep(0.001)
        group.head = head
        return super()._append(entries, **kwargs)


class KeepsItsNumbers(MemoryStore):
    async def anew_run(self, group: str, above: int) -> GroupState:
        return self.states([group])[group]


class AlwaysBeginsANewRun(MemoryStore):
    async def anew_run(self, group: str, above: int) -> GroupState:
        return await super().anew_run(group, self._groups[group].head + 1)


class ForgetsWhoIsLeftOut(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        plain = [NewEntry(entry.group, entry.wire, entry.kind) for entry in entries]
        return super()._append(plain, **kwargs)


class TakesAnEndForAnEvent(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        events = [
            NewEntry(entry.group, entry.wire) if entry.kind is Kind.END else entry
            for entry in entries
        ]
        return super()._append(events, **kwargs)


class TakesEveryEndForNew(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        return super()._append([entry._replace(at=0) for entry in entries], **kwargs)


class ForgetsAllGroupsAlike(MemoryStore):
    def _trimmed(self, name: str) -> _Group:
        group = super()._trimmed(name)
        if name in self._of_owners and not group.first:
            self._groups.clear()
        return group


class DropsReasons(MemoryStore):
    def _trimmed(self, name: str) -> _Group:
        group = super()._trimmed(name)
        now = time.monotonic()
        group.trim(now - conf().HISTORY_AGE, now)
        return group


class TakesOffForAtOnce(DropsReasons):
    """Keeps events for no time where their age is off."""


class CannotBeUsedAgain(MemoryStore):
    async def aclose(self) -> None:
        self._groups = None  # type: ignore[assignment]


class StaysInItsProcess(MemoryStore):
    crosses_processes = True


class IgnoresProducers(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        claims = (Kind.BEGIN, Kind.LAPSE)
        plain = [entry if entry.kind in claims else entry._replace(producer=0) for entry in entries]
        return super()._append(plain, **kwargs)


class TakesInEveryProducer(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        for entry in entries:
            if entry.kind is Kind.BEGIN and entry.group in self._groups:
                self._groups[entry.group].producer = entry.producer
        return super()._append(entries, **kwargs)


class ForgetsRenewals(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        if entries[0].kind is Kind.RENEW:
            return [None], []
        return super()._append(entries, **kwargs)


class TellsNotWhoProduces(MemoryStore):
    async def achanged(self, cursor: Cursor, groups: Collection[str]) -> Any:
        hints, cursor = await super().achanged(cursor, groups)
        return [hint._replace(producer=0) for hint in hints], cursor


class HandsNothingOver(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        kept = [entry for entry in entries if entry.kind is not Kind.HAND_OVER]
        return super()._append(kept, **kwargs)


class ClosesWhatIsHandedOver(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        closed = [
            entry._replace(kind=Kind.CLOSE) if entry.kind is Kind.HAND_OVER else entry
            for entry in entries
        ]
        return super()._append(closed, **kwargs)


class TellsOfFewProducers(MemoryStore):
    async def alapsed(self, seconds: float) -> list[Lease]:
        return (await super().alapsed(seconds))[:100]


class KeepsNoMoreOfProducers(MemoryStore):
    def _trimmed(self, name: str) -> _Group:
        group = super()._trimmed(name)
        while len(group.entries) > conf().HISTORY_SIZE:
            group.entries.popleft()
        return group


class TakesProducersInTransactions(MemoryStore):
    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        if connections[self.using].in_atomic_block:
            entries = [entry._replace(producer=0) for entry in entries]
        return super().append(entries, ring)


class ExpectsNothing(MemoryStore):
    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        heads = {
            group: state.head for group, state in self.states([e.group for e in entries]).items()
        }
        met = [
            entry._replace(at=heads[entry.group]) if entry.kind is Kind.EXPECT else entry
            for entry in entries
        ]
        return super()._append(met, **kwargs)


class ExpectsInTransactions(MemoryStore):
    def append(self, entries: Sequence[NewEntry], ring: Ring) -> list[int | None]:
        if connections[self.using].in_atomic_block:
            entries = [entry for entry in entries if entry.kind is not Kind.EXPECT]
        return super().append(entries, ring)


BROKEN: list[tuple[type[EventStore], str]] = [
    (DropsTheLastOfSeveral, "numbers_begin_at_the_clock_and_are_contiguous"),
    (DropsTheLastOfSeveral, "a_transaction_publishes_with_its_commit"),
    (NumbersFromOne, "numbers_begin_at_the_clock_and_are_contiguous"),
    (NumbersAnewAfterReopening, "reopening_goes_on_with_numbers_and_history"),
    (ForgetsThatItWasCancelled, "cancelling_appends_one_close_and_refuses_events"),
    (RefusesNothing, "a_transaction_is_refused_events_for_a_cancelled_group"),
    (AppendsOneAfterTheOther, "one_refused_event_refuses_the_whole_call"),
    (IgnoresCase, "group_names_are_told_apart_byte_for_byte"),
    (CountsAllGroupsAsOne, "groups_have_numbers_of_their_own"),
    (StripsWhitespace, "an_entry_is_read_as_it_was_appended_byte_for_byte"),
    (TellsNoTime, "an_entry_is_read_with_the_time_of_its_append"),
    (ReadsFromTheNumberOn, "reading_goes_on_after_a_number_and_stops_at_the_limit"),
    (
        ReadsAsMuchAsThereIs,
        "reading_stops_where_it_is_enough_bytes",
    ),
    (KeepsNoKeys, "the_newest_event_of_each_key_is_kept_beside_the_history"),
    (ReadsAllKeys, "the_newest_events_of_keys_are_read_page_by_page"),
    (ForgetsKeysOfTransactions, "transactions_and_producers_keep_the_newest_of_their_keys"),
    (ForgetsKeysWithTheRun, "the_newest_events_of_keys_outlive_a_cancel_and_a_new_run"),
    (KeepsEverything, "keys_that_are_too_many_or_too_old_are_forgotten"),
    (ForgetsKeysOfOthers, "keys_are_not_forgotten_for_those_of_another_group"),
    (LeavesOutGroupsWithoutEvents, "states_are_told_of_every_group_that_was_asked_for"),
    (KeepsEverything, "the_newest_events_are_kept_and_older_ones_are_not"),
    (CreatesWhatItReads, "a_group_never_published_to_is_empty_and_reading_creates_nothing"),
    (TellsNoChange, "changes_are_told_once_the_cursor_was_made"),
    (TellsOfEveryGroup, "changes_are_told_of_the_groups_that_were_asked_for"),
    (TellsOfTheNewestChanges, "changes_are_told_however_many_other_groups_have_changed"),
    (RingsNobody, "the_bell_is_rung_with_what_is_new"),
    (ActsAtOnceInTransactions, "a_transaction_that_is_rolled_back_leaves_nothing"),
    (
        ActsAtOnceInTransactions,
        "an_event_committed_after_a_cancel_comes_before_a_close_of_its_own",
    ),
    (LocksNothing, "threads_append_without_losing_or_doubling_a_number"),
    (KeepsItsNumbers, "a_new_run_of_numbers_leaves_every_earlier_position_behind"),
    (AlwaysBeginsANewRun, "of_several_hubs_that_ask_for_a_new_run_one_is_enough"),
    (AlwaysBeginsANewRun, "a_group_that_is_not_behind_keeps_its_numbers"),
    (ForgetsWhoIsLeftOut, "who_is_left_out_of_an_event_is_kept_with_it"),
    (TakesAnEndForAnEvent, "an_end_begins_an_owners_group_anew_and_its_number_is_the_time"),
    (TakesEveryEndForNew, "an_end_that_is_written_late_has_the_time_that_it_was_ordered"),
    (
        TakesEveryEndForNew,
        "an_owner_who_was_let_in_again_is_not_ended_by_what_was_ordered_before",
    ),
    (ForgetsAllGroupsAlike, "an_owners_group_is_forgotten_sooner_than_others"),
    (DropsReasons, "the_reason_of_an_end_is_kept_as_long_as_the_end"),
    (TakesOffForAtOnce, "nothing_is_dropped_for_its_age_where_that_is_off"),
    (CannotBeUsedAgain, "a_store_that_was_closed_can_be_used_again"),
    (StaysInItsProcess, "what_another_process_appended_is_read_and_told"),
    (TakesInEveryProducer, "a_group_has_one_producer"),
    (TakesInEveryProducer, "who_would_follow_a_dead_producer_closes_its_group"),
    (IgnoresProducers, "each_event_of_a_producer_counts_once"),
    (IgnoresProducers, "entries_of_a_producer_that_is_not_the_groups_are_refused"),
    (IgnoresProducers, "a_group_that_is_cancelled_has_no_producer_and_takes_none"),
    (ForgetsRenewals, "a_producer_that_renews_nothing_has_lapsed"),
    (TellsNotWhoProduces, "changes_say_who_produces"),
    (HandsNothingOver, "a_group_that_was_handed_over_goes_on_with_the_next_producer"),
    (ClosesWhatIsHandedOver, "a_group_that_nobody_takes_over_lapses"),
    (TellsOfFewProducers, "all_producers_that_have_died_are_told_of"),
    (KeepsNoMoreOfProducers, "all_that_a_producer_publishes_is_kept"),
    (TakesProducersInTransactions, "a_producer_is_refused_inside_a_transaction"),
    (ExpectsNothing, "of_several_who_expect_the_same_head_one_appends"),
    (ExpectsInTransactions, "nothing_is_expected_inside_a_transaction"),
]

TESTS = {name for name in dir(EventStoreContract) if name.startswith("test_")}


@pytest.mark.once
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("store", "test"), BROKEN)
def test_a_store_that_breaks_the_contract_fails(
    store: type[EventStore], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.testing.stores._SECONDS", 8)

    class BrokenStoreTests(EventStoreContract, TransactionTestCase):
        def make_store(self) -> EventStore:
            return store()

    result = unittest.TestResult()
    unittest.TestSuite([BrokenStoreTests(f"test_{test}")]).run(result)
    assert result.testsRun == 1
    assert result.failures or result.errors


def test_every_test_of_the_contract_can_fail() -> None:
    assert {f"test_{test}" for _, test in BROKEN} == TESTS


def test_the_contract_runs_in_a_project_without_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_store.py").write_text("""
import sys

sys.modules["pytest"] = None

from django.test import TransactionTestCase
from django_sse.stores.memory import MemoryStore
from django_sse.testing import EventStoreContract

class StoreTests(EventStoreContract, TransactionTestCase):
    def make_store(self):
        return MemoryStore()
""")
    finished = subprocess.run(
        [sys.executable, "manage.py", "test", tmp_path],
        cwd=settings.BASE_DIR,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"Ran {len(TESTS)} tests" in finished.stderr
