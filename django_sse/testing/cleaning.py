"""What one test leaves to the next one, and how to forget it."""

from typing import Any

from channels.layers import InMemoryChannelLayer, channel_layers

from django_sse import logs, stores
from django_sse.doorbells.base import published
from django_sse.stores.memory import MemoryStore
from django_sse.stores.write_retries import write_retries
from django_sse.streaming import hub
from django_sse.streaming.tally import forget_tallies, refusals


def forget_streams() -> None:
    """Forget what tests leave in this process: the events of the memory store, messages on the
    in-memory channel layer, what was counted and what was logged once, and streams of event loops
    that were closed.

    While streams are open, for example those of a server in this process, it does nothing.
    """
    hub.forget_closed_loops()
    if hub.open_streams():
        return
    stores.forget_store(MemoryStore)
    for alias, layer in list(channel_layers.backends.items()):
        if type(layer) is InMemoryChannelLayer:
            del channel_layers.backends[alias]
    write_retries.forget()
    refusals.forget()
    forget_tallies()
    published.forget()
    logs.forget_logged()


class EventStreamTestMixin:
    """For a test case of ``unittest``: each test begins with nothing of the one before.

    Put it before Django's class: ``class NewsTests(EventStreamTestMixin, TestCase)``.
    """

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        test: Any = self
        test.addCleanup(forget_streams)
        forget_streams()
