"""What one read of an event store may take: seconds, and bytes."""

from typing import Final

READ_SECONDS: Final = 4.0
"""How long a store may take to answer a read: one that hangs is one that is away."""

READ_BYTES: Final = 192 * 1024
"""The bytes of events with which a read is full, however few they are."""
