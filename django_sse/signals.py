"""The signals that this library sends.

Their receivers never delay a stream or a publisher's event loop: where an event loop runs, they are
called soon, one after the other, in a thread of their own, and ``async`` receivers on the loop.
What a receiver raises is logged.
"""

from typing import Final

from django.dispatch import Signal

stream_opened: Final = Signal()
"""A client's stream has begun. Arguments: ``stream``, an ``OpenStream``."""

stream_closed: Final = Signal()
"""A client's stream has ended. Arguments: ``stream``, an ``OpenStream``, and ``reason``, a text
such as ``"disconnected"`` or ``"cancelled"``."""

event_published: Final = Signal()
"""This process has published an event, and its transaction, if there was one, is committed.
Arguments: ``group``, ``namespace`` (the tenant), ``id`` (in a stream of the group alone) and
``event``, an ``Event``."""
