"""The limits of one read of an event store, in seconds and in bytes."""

from typing import Final

READ_SECONDS: Final = 4.0
"""Seconds that a store may take to answer a read. A store that hangs counts as unavailable."""

READ_BYTES: Final = 192 * 1024
"""Bytes of events after which a page is full, however few events it has."""
