"""Fixtures for all tests."""

import os
from collections.abc import Iterator

import pytest
from django.db import connections

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


def _uses_postgresql(item: pytest.Item) -> bool:
    return any(
        postgresql.ALIAS in mark.kwargs.get("databases", ())
        for mark in item.iter_markers("django_db")
    )
