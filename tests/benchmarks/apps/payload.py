"""The payload of every event: 150 bytes, with a mark that the load client reads."""

from time import monotonic_ns

BYTES = 150
# The mark is @@NUMBER.NANOSECONDS@, of 8 and 20 digits.
_FILLING = "x" * (BYTES - 32)


def payload(number: int) -> str:
    """Return the payload of a stream's event, stamped with this moment.

    Args:
        number: Counts the events of a stream, from 1.
    """
    return f"@@{number:08d}.{monotonic_ns():020d}@{_FILLING}"
