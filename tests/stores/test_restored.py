"""A database that was restored in a way that nobody can see, on every database supported."""

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Model
from django.test import override_settings

from django_sse.groups.replay import is_lost
from django_sse.models import EventGroup, NewestEvent, OutboxEvent, StoredEvent
from django_sse.stores.database import DatabaseStore
from django_sse.testing.stores import append_events, event, texts
from django_sse.testing.threads import in_thread
from tests.redis import RedisServer

MODELS: list[type[Model]] = [EventGroup, StoredEvent, NewestEvent, OutboxEvent]


def backup(alias: str) -> list[Model]:
    return [row for model in MODELS for row in model._base_manager.using(alias)]


def restore(alias: str, rows: list[Model]) -> None:
    """Row by row, into the tables that are there."""
    for model in MODELS:
        model._base_manager.using(alias).all().delete()
        of_model = [row for row in rows if isinstance(row, model)]
        model._base_manager.using(alias).bulk_create(of_model)


def reset(**store: Any) -> str:
    output = io.StringIO()
    with override_settings(DJANGO_SSE={"STORE": store}):
        call_command("sse_reset", stdout=output)
    return output.getvalue()


async def test_after_sse_reset_nobody_skips_events_with_numbers_that_she_has_seen(
    database_store: DatabaseStore,
) -> None:
    store, alias = database_store, database_store.using
    seen = await append_events(store, event("news", "before"), event("sport", "before"))
    rows = await in_thread(lambda: backup(alias))
    seen = [seen[0], *await append_events(store, *(event("news", "lost") for _ in range(8)))]
    await in_thread(lambda: restore(alias, rows))
    # Numbers are overtaken before any hub has looked.
    await append_events(store, *(event("news", "new") for _ in range(15)))
    _, cursor = await store.achanged(None, {"news"})
    told = await in_thread(lambda: reset(BACKEND="database", OPTIONS={"using": alias}))
    assert told == "2 groups get new numbers when they are next used.\n"
    # Hubs look at all of them, whatever else has changed.
    hints, _ = await store.achanged(cursor, {"news", "sport"})
    assert {hint.group for hint in hints or ()} == {"news", "sport"}
    await append_events(store, event("news", "now"))
    state = (await store.astates(["news"]))["news"]
    assert all(is_lost(number, state) for number in seen)
    assert not is_lost(state.head, state)
    assert texts(await store.aread("news", 0, 100)) == ["now"]
    await append_events(store, event("news", "then"))
    assert texts(await store.aread("news", 0, 100)) == ["now", "then"]


def test_redis_is_not_told_and_what_only_this_process_sees_is_an_error(
    redis_server: RedisServer,
) -> None:
    told = reset(BACKEND="redis", OPTIONS={"url": redis_server.url})
    assert told == "There is nothing to do: this store knows by itself what it has lost.\n"
    with pytest.raises(CommandError, match="in this process"):
        reset(BACKEND="memory")
