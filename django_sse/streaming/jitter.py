"""When clients come back: at random times, so that they do not all come at once."""

from math import inf
from random import uniform
from typing import Final

from django_sse.conf import conf
from django_sse.event import Event

# Browsers' timers hold no more.
_MOST_MILLISECONDS: Final = 2**31 - 1
# A stream ends early by at most this fraction of MAX_AGE.
_AGE_JITTER: Final = 0.2


def jittered_seconds() -> float:
    """Return a random time of one to two times RETRY, in seconds."""
    return uniform(0.5, 1) * longest_jittered_seconds()


def longest_jittered_seconds() -> float:
    """Return the longest time that a client is told when its stream ends, in seconds."""
    # If RETRY is below half a second, clients would come nearly all at once.
    return 2 * max(conf().RETRY / 1000, 0.5)


def jittered_retry() -> bytes:
    """Return a ``retry`` field that lets a client reconnect after a random time."""
    return retry_field(jittered_seconds())


def first_retry(milliseconds: int) -> bytes:
    """Return the ``retry`` field of a stream that begins: one to two times as many milliseconds.

    A browser keeps the time that it was last told, and waits for it whenever the connection is
    lost. Told the same, all clients of a server that crashed would come back at the same moment.
    """
    return retry_field(uniform(1, 2) * milliseconds / 1000)


def retry_field(seconds: float) -> bytes:
    """Return a ``retry`` field that lets a client reconnect after so many seconds."""
    return Event(retry=min(round(seconds * 1000), _MOST_MILLISECONDS)).encode()


def jittered_age() -> float:
    """Return after how many seconds a stream ends: a random time near MAX_AGE, or inf for never."""
    max_age = conf().MAX_AGE
    return uniform(1 - _AGE_JITTER, 1) * max_age if max_age else inf
