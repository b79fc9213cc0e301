"""When clients come back: each at a time of its own, so that they do not come all at once."""

from math import inf
from random import uniform
from typing import Final

from django_sse.conf import conf
from django_sse.event import Event

# A stream ends at most this part of MAX_AGE early.
_AGE_JITTER: Final = 0.2


def jittered_seconds() -> float:
    """Return one to two times RETRY, in seconds."""
    # Where RETRY is less than half a second, clients would come all at once, or nearly so.
    return uniform(1, 2) * max(conf().RETRY / 1000, 0.5)


def jittered_retry() -> bytes:
    """Return a ``retry`` that sends a client back at a time of its own."""
    return Event(retry=round(jittered_seconds() * 1000)).encode()


def jittered_age() -> float:
    """Return after how many seconds a stream is to end, which is about MAX_AGE; inf for never."""
    max_age = conf().MAX_AGE
    return uniform(1 - _AGE_JITTER, 1) * max_age if max_age else inf
