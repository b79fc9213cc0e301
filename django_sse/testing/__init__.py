"""What a store or a channel layer has to do for django_sse, as tests for those who write one."""

from django_sse.testing.layers import ChannelLayerContract
from django_sse.testing.stores import EventStoreContract

__all__ = ["ChannelLayerContract", "EventStoreContract"]
