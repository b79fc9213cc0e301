"""Tests for authors of stores and channel layers: what django_sse needs these to do."""

from django_sse.testing.layers import ChannelLayerContract
from django_sse.testing.stores import EventStoreContract

__all__ = ["ChannelLayerContract", "EventStoreContract"]
