"""Doorbells tell hubs that groups have new events.

A process rings its own hubs directly, and those of other processes by what the project has: a
store that does so itself, a channel layer, or sockets. A lost doorbell costs time, but no events:
every hub compares itself with the store.
"""

from django_sse.channel_layer import crossing_layer
from django_sse.doorbells.base import Doorbell
from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.doorbells.layer import LayerDoorbell
from django_sse.doorbells.notifications import NotificationDoorbell
from django_sse.stores.base import EventStore


def doorbell_of(store: EventStore) -> Doorbell:
    """Return the doorbell that reaches all hubs that read a store."""
    if not store.crosses_processes:
        return Doorbell()
    if notifications := store.notifications:
        return NotificationDoorbell(notifications)
    if layer := crossing_layer():
        return LayerDoorbell(layer)
    return DatagramDoorbell(store)
