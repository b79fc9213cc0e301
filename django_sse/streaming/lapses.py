"""Closes the groups of producers that have died, in whichever process they were."""

import asyncio
from random import uniform
from typing import Final

from django_sse.concurrency.tasks import must_propagate
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.groups.entries import Kind, Lease, NewEntry, closing_wire
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore

INTERRUPTED: Final = closing_wire("interrupted")
"""What tells clients that a producer has died."""


def renewal_seconds() -> float:
    """Return the seconds between two renewals of a producer's lease.

    A lease that misses two renewals has lapsed. It is looked at twice, since it is no fault of the
    producer's if the store could not be written. All of this takes less than ``PRODUCER_TTL``.
    """
    return conf().PRODUCER_TTL / 6


async def close_lapsed(store: EventStore) -> None:
    """Close the groups of producers that have died, again and again.

    Args:
        store: The event store.
    """
    lapsed: set[Lease] = set()
    while True:
        await asyncio.sleep(renewal_seconds() * uniform(0.9, 1))
        try:
            before, lapsed = lapsed, set(await store.alapsed(3 * renewal_seconds()))
            for lease in lapsed & before:
                await _close(store, lease)
        except BaseException as error:
            if must_propagate(error):
                raise
            lapsed = set()
            log_seldom("The event store cannot tell which producers have died.", exc_info=error)


async def _close(store: EventStore, lease: Lease) -> None:
    group, producer, renewed = lease
    closing = NewEntry(group, INTERRUPTED, Kind.LAPSE, at=renewed, producer=producer)
    [number] = await store.aappend_apart([closing], doorbell_of(store).ring)
    if number is not None:
        logger.warning("The producer of group %r has died, so the group is closed.", group)
