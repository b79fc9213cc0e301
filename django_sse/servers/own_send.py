"""Tells a server's own ``send`` from one that a middleware has put around it."""

from functools import partial
from typing import Any, Final

# Their `send` writes, and waits where the client does not read. It asks for no current task, as an
# `asyncio.timeout` around it would.
_MODULES: Final = (
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.http.h11_impl",
    "daphne.server",
    "granian._granian",
    "hypercorn.protocol.http_stream",
)


def needs_no_task(send: Any) -> bool:
    """Return whether a ``send`` may be called outside of a task, as long as it does not wait."""
    # Daphne's is a `functools.partial`.
    method = send.func if isinstance(send, partial) else send
    return type(getattr(method, "__self__", None)).__module__ in _MODULES
