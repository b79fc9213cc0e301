"""Tells hubs that groups have something new: this process's directly, others as the project can.

A doorbell that is lost costs time, not events: every hub compares itself with the store.
"""

from django_sse.channel_layer import crossing_layer
from django_sse.doorbells.base import Doorbell
from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.doorbells.layer import LayerDoorbell
from django_sse.doorbells.notifications import NotificationDoorbell
from django_sse.stores.base import EventStore


def doorbell_of(store: EventStore) -> Doorbell:
    """Return the doorbell that reaches the hubs which read a store."""
    if not store.crosses_processes:
        return Doorbell()
    if layer := crossing_layer():
        return LayerDoorbell(layer)
    if store.notifications:
        return NotificationDoorbell(store.notifications)
    return DatagramDoorbell(store)
