"""The tokens by which a store knows the producer of a group.

A token is a random number, followed by a count of the events that the store has taken.
"""

import secrets
from typing import Final

HANDED_OVER: Final = 1
"""The token of a group whose producer has left it to the next one. No producer has it."""

_COUNTING_BITS: Final = 24
# The bit of a producer that wants to know whether anybody reads what it makes.
_ASKS_FOR_READERS: Final = 1 << _COUNTING_BITS


def new_token(*, asks_for_readers: bool) -> int:
    """Return the token of a new producer.

    Args:
        asks_for_readers: Whether the producer stops if nobody follows its group.
    """
    # Less than 2^53: up to there, numbers are exact in each store.
    token = (secrets.randbelow(2**28 - 1) + 1) << (_COUNTING_BITS + 1)
    return token | _ASKS_FOR_READERS if asks_for_readers else token


def is_same_producer(token: int, other: int) -> bool:
    """Return whether two tokens are of one producer."""
    return token >> _COUNTING_BITS == other >> _COUNTING_BITS


def asks_for_readers(token: int) -> bool:
    """Return whether a group's producer, if there is one, stops if nobody follows the group."""
    return bool(token & _ASKS_FOR_READERS)
