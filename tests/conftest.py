"""Fixtures for all tests."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from pytest_django import Settings

from django_sse.hub import open_streams
from django_sse.stores import get_store
from tests import postgresql


@pytest.fixture(scope="session")
def django_db_modify_db_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start PostgreSQL before the test databases are made, if a test uses it."""
    directory = postgresql.binaries()
    if directory and any(map(_uses_postgresql, request.session.items)):
        with postgresql.serve(directory) as port:
            connections.settings[postgresql.ALIAS]["PORT"] = port
            yield
    else:
        assert directory or not os.environ.get("CI"), "CI has to have PostgreSQL."
        yield


@pytest.fixture
async def everything_ends() -> AsyncIterator[None]:
    """A test leaves nothing behind: no stream, no task of a hub, no connection of a reader."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(10):
        while open_streams() or asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0.01)
    await get_store().aclose()
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def memory_store(settings: Settings, everything_ends: None) -> AsyncIterator[None]:
    """Views alone, on a store that is empty before a test; after it no stream is open."""
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"STORE": "memory"}
    yield
    assert open_streams() == 0


def _uses_postgresql(item: pytest.Item) -> bool:
    return any(
        postgresql.ALIAS in mark.kwargs.get("databases", ())
        for mark in item.iter_markers("django_db")
    )
