"""The plugin of django_sse for pytest, found by its entry point.

It is outside of the package, and imports nothing of Django or django_sse until a test has done so.
"""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_sse.testing import PublishedEvents
    from django_sse.testing.streams import OpenStream


@pytest.fixture
def open_stream() -> "Callable[..., OpenStream]":
    """``django_sse.testing.open_stream``: open an event stream with Django's test client."""
    from django_sse.testing import open_stream

    return open_stream


@pytest.fixture
def published() -> "Iterator[PublishedEvents]":
    """What the test publishes: ``published.assert_published("news", ...)``."""
    from django_sse.testing import published

    with published() as events:
        yield events


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Leave nothing of a test to the next one, after all fixtures."""
    try:
        return (yield)
    finally:
        # A project that uses django_sse has imported its stores.
        if "django_sse.stores" in sys.modules and _has_settings():
            from django_sse.testing import forget_streams

            forget_streams()


def _has_settings() -> bool:
    from django.apps import apps

    return apps.ready and apps.is_installed("django_sse")
