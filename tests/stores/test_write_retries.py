"""Who was logged out or kicked while the store was away is shut out once it is back."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from threading import enumerate as threads
from typing import Any

import pytest
import redis
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from pytest_django import Settings

from django_sse import acancel, apublish, cancel, reopen
from django_sse.access.owners import user_key
from django_sse.groups.entries import Kind, NewEntry, closing_wire
from django_sse.groups.numbering import first_number
from django_sse.stores import get_store, write_retries
from django_sse.stores.base import EventStore
from django_sse.stores.database import DatabaseStore
from django_sse.stores.memory import MemoryStore
from django_sse.testing.stores import Bell
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.failures import Panic
from tests.redis import RedisServer, serve
from tests.streams import until
from tests.users import answer, logged_in, logout, stream, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("quickly"),
]

DURABLE = {"appendonly": "yes", "appendfsync": "always"}


def logout_in_transaction(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        return logout(request)


def kick(request: HttpRequest) -> HttpResponse:
    cancel(user=request.GET["user"], reason="kicked")
    return HttpResponse(status=204)


urlpatterns = [
    path("events/", EventStreamView.as_view(groups=["news"])),
    path("logout/", logout),
    path("logout-in-transaction/", logout_in_transaction),
    path("kick/", kick),
]


def writers() -> list[Thread]:
    return [thread for thread in threads() if thread.name == "django-sse-write-retries"]


def nothing_is_left() -> bool:
    # Each time: a write that fails at this moment keeps its ends again.
    write_retries.write_retries.forget()
    return not writers()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(write_retries, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(write_retries, "_LONGEST_PAUSE", 0.05)
    yield
    wait(nothing_is_left)


class Away:
    """Keeps a store from being written while it is away."""

    def __init__(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away = True
        self.failure: BaseException = OSError("The store is away.")
        self.attempts: list[Any] = []
        self._write = store._append
        monkeypatch.setattr(store, "_append", self._append)

    def _append(self, entries: Sequence[NewEntry], **kwargs: Any) -> Any:
        self.attempts.append(connections["default"])
        if self.is_away:
            raise self.failure
        return self._write(entries, **kwargs)


@pytest.fixture
def away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Away:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600}
    return Away(get_store(), monkeypatch)


def end(owner_key: str, at: int = 0, reason: str = "over") -> NewEntry:
    return NewEntry(owner_key, closing_wire(reason), Kind.END, at=at)


def ended_at(store: EventStore, user: Any) -> int:
    return store.states([user_key(user)])[user_key(user)].first


# What is kept, and for how long


def test_a_kick_that_cannot_be_written_is_an_error_and_is_written_at_last(away: Away) -> None:
    before = first_number()
    with pytest.raises(OSError, match="away"):
        cancel(user=7)
    after = first_number()
    wait(lambda: len(away.attempts) > 3)
    away.is_away = False
    # Also in a process without an event loop. Its time is that of the order.
    wait(lambda: before <= ended_at(get_store(), 7) <= after)
    wait(lambda: not writers())


def test_a_kick_is_written_at_last_also_where_what_writes_it_panics(away: Away) -> None:
    away.failure = Panic()
    with pytest.raises(Panic):
        cancel(user=7)
    wait(lambda: len(away.attempts) > 3)
    away.is_away = False
    wait(lambda: ended_at(get_store(), 7))
    wait(lambda: not writers())


def test_a_kick_is_written_at_last_also_where_no_thread_could_be_had(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("django_sse.stores.write_retries.Thread.start", refuse)
        with pytest.raises(OSError, match="away"):
            cancel(user=7)
    with pytest.raises(OSError, match="away"):
        cancel(user=8)
    away.is_away = False
    wait(lambda: ended_at(get_store(), 7) and ended_at(get_store(), 8))
    wait(lambda: not writers())


def test_a_kick_is_written_at_last_also_where_connections_begin_without_autocommit(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections["default"].ensure_connection()
    monkeypatch.setitem(connections["default"].settings_dict, "AUTOCOMMIT", False)
    with pytest.raises(OSError, match="away"):
        cancel(user=7)
    wait(lambda: len(away.attempts) > 1)
    away.is_away = False
    wait(lambda: ended_at(get_store(), 7))
    wait(lambda: not writers())


def test_letting_in_takes_a_kept_kick_back_once_it_has_come_to_be(away: Away) -> None:
    with pytest.raises(OSError, match="away"):
        cancel(user=7)
    with pytest.raises(OSError, match="away"):
        reopen(user=7)

    def reopen_in_vain() -> None:
        with transaction.atomic():
            reopen(user=7)
            transaction.set_rollback(True)

    reopen_in_vain()
    away.is_away = False
    wait(lambda: ended_at(get_store(), 7))
    wait(lambda: not writers())
    reopen(user=7)
    assert not get_store().states([user_key(7)])[user_key(7)].cancelled


def test_a_kick_in_a_transaction_is_written_at_last(away: Away) -> None:
    with transaction.atomic():
        cancel(user=7)
        assert not away.attempts
    assert away.attempts
    away.is_away = False
    wait(lambda: ended_at(get_store(), 7))


def test_a_kick_in_a_transaction_that_is_rolled_back_is_none(away: Away) -> None:
    with transaction.atomic():
        cancel(user=7)
        transaction.set_rollback(True)
    assert not away.attempts
    assert not writers()


def test_what_is_no_end_is_not_tried_again(away: Away) -> None:
    """Twice would be once too often, and the publisher knows what it has failed to say."""
    for append in (lambda: cancel("news"), lambda: get_store().append([event()], Bell())):
        with pytest.raises(OSError, match="away"):
            append()
    assert not writers()


def event() -> NewEntry:
    return NewEntry("news", b"data: a\n\n")


def test_ends_are_lost_after_cancel_ttl(
    away: Away, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DJANGO_SSE = {"CANCEL_TTL": 1}
    with pytest.raises(OSError, match="away"):
        away_store(away).append([end("~a"), end("~b")], Bell())
    wait(lambda: not writers())
    assert "2 ends of streams are lost: the store was unavailable" in caplog.text


def away_store(away: Away) -> EventStore:
    store: EventStore = away._write.__self__  # type: ignore[attr-defined]
    return store


def test_the_oldest_ends_are_lost_where_there_are_too_many(
    away: Away, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write_retries, "_MOST_BYTES", 3000)
    for n in range(10):
        with pytest.raises(OSError, match="away"):
            cancel(user=n)
    assert "lost: there were too many to keep" in caplog.text
    away.is_away = False
    wait(lambda: not writers())
    written = [n for n in range(10) if ended_at(get_store(), n)]
    assert written == [5, 6, 7, 8, 9]


def test_of_several_ends_of_an_owner_the_last_one_is_written(away: Away) -> None:
    keeper, store, now = write_retries.write_retries, get_store(), first_number()
    keeper.keep(store, [end("~a", now, "second")], Bell())
    keeper.keep(store, [end("~a", now - 10, "first")], Bell())
    away.is_away = False
    wait(lambda: not writers())
    [entry] = asyncio.run(store.aread("~a", 0, 10))
    assert (entry.number, entry.wire) == (now, closing_wire("second"))


def test_a_store_that_is_away_holds_up_no_other_one(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MemoryStore()
    of_other = Away(other, monkeypatch)
    for store in (get_store(), other):
        with pytest.raises(OSError, match="away"):
            store.append([end("~a")], Bell())
    of_other.is_away = False
    wait(lambda: other.states(["~a"])["~a"].first)
    assert not get_store().states(["~a"])["~a"].first


def test_writing_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DatabaseStore()
    away = Away(store, monkeypatch)
    with pytest.raises(OSError, match="away"):
        store.append([end("~a")], Bell())
    away.is_away = False
    wait(lambda: not writers())
    assert store.states(["~a"])["~a"].first
    assert away.attempts[-1] is not connections["default"]
    assert away.attempts[-1].connection is None


def wait(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))


_FORK = """
import os, sys, time
from django.conf import settings
settings.configure(DJANGO_SSE={"STORE": "memory"}, DATABASES={})
import django
django.setup()
from django_sse import cancel
from django_sse.stores import get_store, write_retries
from django_sse.access.owners import user_key

write_retries._FIRST_PAUSE = write_retries._LONGEST_PAUSE = 0.01
store = get_store()
write, away = store._append, True

def append(entries, **kwargs):
    if away:
        raise OSError
    return write(entries, **kwargs)

store._append = append

def fail_to_cancel(user):
    try:
        cancel(user=user)
    except OSError:
        pass

def written():
    deadline = time.monotonic() + 10
    while write_retries.write_retries._is_writing and time.monotonic() < deadline:
        time.sleep(0.01)
    return [n for n in range(3) if store.states([user_key(n)])[user_key(n)].first]

fail_to_cancel(1)
child = os.fork()
if not child:
    fail_to_cancel(2)
away = False
expected = [1] if child else [2]
assert written() == expected, (written(), expected)
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_writes_its_own_and_its_parent_the_others() -> None:
    subprocess.run([sys.executable, "-c", _FORK], check=True, timeout=60)


# Streams


@pytest.mark.usefixtures("everything_ends")
async def test_a_late_kick_spares_the_session_that_began_after_it(away: Away) -> None:
    ada = await user()
    before, after = await logged_in(), await logged_in()
    async with stream(before) as ended:
        with pytest.raises(OSError, match="away"):
            await acancel(user=ada, reason="kicked")
        await after.aforce_login(ada)
        async with stream(after) as reader:
            away.is_away = False
            assert [event.json() for event in await ended.rest()] == [{"reason": "kicked"}]
            await apublish("news", "goes on")
            assert (await reader.next_event()).data == "goes on"
    assert (await answer(before, ended.last_event_id)).status_code == 204
    async with stream(after):
        pass


@pytest.mark.usefixtures("everything_ends")
async def test_a_database_that_is_away_is_written_when_it_is_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "database", "SYNC_INTERVAL": 3600}
    away = Away(get_store(), monkeypatch)
    ada = await user()
    async with stream(await logged_in()) as ended, stream(await logged_in("eve")) as other:
        with pytest.raises(OSError, match="away"):
            await in_thread(lambda: cancel(user=ada))
        away.is_away = False
        assert [event.event for event in await ended.rest()] == ["close"]
        await apublish("news", "goes on")
        assert (await other.next_event()).data == "goes on"


# With a real Redis


@pytest.fixture
def server(shared_redis: RedisServer) -> Iterator[RedisServer]:
    with serve(**DURABLE) as server:
        yield server


@pytest.fixture
def on_redis(settings: Settings, server: RedisServer) -> None:
    store = {"BACKEND": "redis", "OPTIONS": {"url": server.url, "durable": True}}
    # What ends a stream in time is neither the sync nor the look at sessions.
    settings.DJANGO_SSE = {"STORE": store, "SYNC_INTERVAL": 3600}


@pytest.mark.usefixtures("on_redis", "everything_ends")
@pytest.mark.parametrize("url", ["/logout/", "/logout-in-transaction/"])
async def test_a_logout_while_redis_is_away_ends_the_other_tab_once_it_is_back(
    url: str, server: RedisServer
) -> None:
    tab, phone = await logged_in(), await logged_in()
    async with stream(tab) as ended, stream(phone) as other:
        await apublish("news", "before")
        assert (await ended.next_event()).data == "before"
        server.kill()
        assert (await tab.get(url)).status_code == 204
        server.start()
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "logged out"})
        await apublish("news", "after")
        assert [event.data for event in await other.until("after")] == ["before", "after"]
    assert (await answer(tab, ended.last_event_id)).status_code == 204


@pytest.mark.usefixtures("on_redis", "everything_ends")
async def test_a_kick_while_redis_is_away_ends_the_streams_once_it_is_back(
    server: RedisServer,
) -> None:
    ada = await user()
    tab = await logged_in()
    async with stream(tab) as ended, stream(await logged_in("eve")) as other:
        server.kill()
        with pytest.raises(redis.ConnectionError):
            await tab.get(f"/kick/?user={ada.pk}")
        server.start()
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "kicked"})
        await apublish("news", "after")
        assert (await other.next_event()).data == "after"
    assert (await answer(tab, ended.last_event_id)).status_code == 204
    assert (await answer(tab)).status_code == 204


@pytest.mark.usefixtures("server", "everything_ends")
async def test_a_late_kick_spares_the_sessions_after_it_also_where_redis_has_forgotten(
    settings: Settings, server: RedisServer
) -> None:
    """Where it was restarted, its groups begin anew at the time; an owner's must not."""
    store = {"BACKEND": "redis", "OPTIONS": {"url": server.url}}
    settings.DJANGO_SSE = {"STORE": store, "SYNC_INTERVAL": 3600}
    ada = await user()
    # From a login on, this process knows the time by Redis.
    await logged_in("eve")
    await acancel(user=ada)
    server.kill()
    with pytest.raises(redis.ConnectionError):
        await acancel(user=ada)
    tab = await logged_in()
    server.start()
    await until(lambda: not writers())
    async with stream(tab):
        pass
