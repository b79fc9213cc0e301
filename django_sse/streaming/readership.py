"""Tells producers that ask for it, in whichever process they are, that somebody reads them."""

import asyncio
from collections.abc import Mapping
from hashlib import sha256
from itertools import islice
from random import uniform
from typing import Final

from django_sse.concurrency.tasks import must_propagate
from django_sse.groups.entries import Kind, OwnEntry
from django_sse.groups.names import OWNER_KEY_LENGTH, OWNER_PREFIX
from django_sse.groups.producer_tokens import asks_for_readers
from django_sse.logs import log_seldom
from django_sse.stores.base import EventStore
from django_sse.streaming.lapses import renewal_seconds
from django_sse.streaming.subscription import Subscription

# How many groups are told together.
_STEP: Final = 500


def readers_key(group: str) -> str:
    """Return the name under which a store keeps when a group was last followed.

    It is a name as owners have them: nothing but a time is kept, and it expires.
    """
    digest = sha256(f"readers of {group}".encode()).hexdigest()
    return OWNER_PREFIX + digest[: OWNER_KEY_LENGTH - len(OWNER_PREFIX)]


async def tell_producers(store: EventStore, subscriptions: Mapping[str, Subscription]) -> None:
    """Keep in the store that groups are followed whose producers ask, again and again.

    Args:
        store: The event store.
        subscriptions: The groups that clients of this process follow, by name.
    """
    while True:
        await asyncio.sleep(renewal_seconds() * uniform(0.9, 1))
        keys = (
            readers_key(group)
            for group, subscription in list(subscriptions.items())
            if asks_for_readers(subscription.producer) and subscription.is_followed
        )
        try:
            while some := list(islice(keys, _STEP)):
                # The time of a REOPEN is kept, and it shuts nobody out.
                marks = [OwnEntry(key, b"", Kind.REOPEN) for key in some]
                await store.aappend_apart(marks, lambda hints: None)
        except BaseException as error:
            if must_propagate(error):
                raise
            log_seldom("Producers cannot be told that they are read.", exc_info=error)
