"""What can be told of an open stream, and who is told when one begins and ends."""

from dataclasses import asdict, dataclass
from time import time

from django_sse.concurrency.signal_calls import send_signal
from django_sse.groups.namespaces import full_name
from django_sse.logs import logger
from django_sse.signals import stream_closed, stream_opened


@dataclass(frozen=True, slots=True)
class OpenStream:
    """An open stream at one moment.

    ``groups`` is empty for a generator's stream. ``namespace`` is the tenant's name. ``user`` is
    the primary key of the user who owns it, as text; None for nobody. ``opened_at`` is in seconds
    since the epoch. ``sent_bytes`` were sent; ``waiting_bytes`` are being sent or wait for a slow
    client, which has not taken the present send for ``seconds_sending``.
    """

    groups: tuple[str, ...]
    namespace: str
    user: str | None
    opened_at: float
    sent_bytes: int
    waiting_bytes: int
    seconds_sending: float = 0.0

    @property
    def full_names(self) -> list[str]:
        """The names of the groups, with the tenant as a prefix."""
        return [full_name(self.namespace, group) for group in self.groups]


def announce_opened(stream: OpenStream, after: str) -> None:
    """Log that a client's stream has begun, and send ``stream_opened``.

    Args:
        stream: The stream.
        after: The id that it begins after.
    """
    logger.debug(
        "A stream of %s begins after %s, for user %s.",
        ", ".join(stream.groups) or "a generator",
        after or "nothing",
        stream.user,
        extra={**asdict(stream), "position": after},
    )
    send_signal(stream_opened, OpenStream, stream=stream)


def announce_closed(stream: OpenStream, reason: str) -> None:
    """Log that a client's stream has ended, and send ``stream_closed``."""
    seconds = time() - stream.opened_at
    logger.debug(
        "A stream of %s of user %s has ended after %.1f seconds and %d bytes: %s.",
        ", ".join(stream.groups) or "a generator",
        stream.user,
        seconds,
        stream.sent_bytes,
        reason,
        extra={**asdict(stream), "reason": reason, "seconds": seconds},
    )
    send_signal(stream_closed, OpenStream, stream=stream, reason=reason)
