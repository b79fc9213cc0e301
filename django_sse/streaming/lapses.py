"""Closes the groups of producers that have died, in whichever process they were."""

import asyncio
from collections import Counter
from math import ceil
from random import uniform
from typing import Final

from django_sse.concurrency.tasks import must_propagate
from django_sse.conf import conf
from django_sse.doorbells import doorbell_of
from django_sse.doorbells.base import POLL_SECONDS_WITH_DOORBELL
from django_sse.groups.entries import Kind, Lease, NewEntry, closing_wire
from django_sse.groups.producer_tokens import HANDED_OVER
from django_sse.logs import log_seldom, logger
from django_sse.stores.base import EventStore
from django_sse.streaming.jitter import longest_jittered_seconds

INTERRUPTED: Final = closing_wire("interrupted")
"""What tells clients that a producer has died."""


def renewal_seconds() -> float:
    """Return the seconds between two renewals of a producer's lease.

    A lease that misses two renewals has lapsed. It is looked at twice, since it is no fault of the
    producer's if the store could not be written. All of this takes less than ``PRODUCER_TTL``.
    """
    return conf().PRODUCER_TTL / 6


def hearing_seconds() -> float:
    """Return the seconds after which all processes have heard of a group's producer."""
    return conf().SYNC_INTERVAL or POLL_SECONDS_WITH_DOORBELL


async def close_lapsed(store: EventStore) -> None:
    """Close the groups of producers that have died, again and again.

    Args:
        store: The event store.
    """
    # How often in a row each was found to have lapsed.
    found: Counter[Lease] = Counter()
    while True:
        await asyncio.sleep(renewal_seconds() * uniform(0.9, 1))
        try:
            lapsed = await store.alapsed(3 * renewal_seconds())
            found = Counter({lease: found[lease] + 1 for lease in lapsed})
            for lease, times in found.items():
                if times >= _times_to_be_found(lease):
                    await _close(store, lease)
        except BaseException as error:
            if must_propagate(error):
                raise
            found.clear()
            log_seldom("The event store cannot tell which producers have died.", exc_info=error)


def _times_to_be_found(lease: Lease) -> int:
    if lease.producer != HANDED_OVER:
        return 2
    # Clients in other processes are sent back first, and take their time.
    patience = conf().PRODUCER_TTL / 2 + hearing_seconds() + longest_jittered_seconds()
    return 2 + ceil(patience / renewal_seconds())


async def _close(store: EventStore, lease: Lease) -> None:
    group, producer, renewed = lease
    closing = NewEntry(group, INTERRUPTED, Kind.LAPSE, at=renewed, producer=producer)
    [number] = await store.aappend_apart([closing], doorbell_of(store).ring)
    if number is not None:
        if producer == HANDED_OVER:
            logger.warning("Nobody goes on with group %r, so the group is closed.", group)
        else:
            logger.warning("The producer of group %r has died, so the group is closed.", group)
