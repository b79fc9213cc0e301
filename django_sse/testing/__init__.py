"""Tests of what a project streams and publishes, and tests for authors of stores and layers."""

from django_sse.testing.cleaning import EventStreamTestMixin, forget_streams
from django_sse.testing.layers import ChannelLayerContract
from django_sse.testing.publishing import PublishedEvent, PublishedEvents, published
from django_sse.testing.stores import EventStoreContract
from django_sse.testing.streams import AsyncEventStream, EventStream, open_stream

__all__ = [
    "AsyncEventStream",
    "ChannelLayerContract",
    "EventStoreContract",
    "EventStream",
    "EventStreamTestMixin",
    "PublishedEvent",
    "PublishedEvents",
    "forget_streams",
    "open_stream",
    "published",
]
