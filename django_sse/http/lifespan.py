"""The lifespan of an application, at the end of which producers may finish their work.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from typing import Any

from django_sse.http.hand_off import Application, Receive, Scope, Send
from django_sse.producing import wind_down


async def with_producers(
    application: Application, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run an application's lifespan, or an empty one if it has none. Producers wind down first."""
    is_begun = False

    async def receive_next() -> Any:
        nonlocal is_begun
        is_begun = True
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await wind_down()
        return message

    try:
        await application(scope, receive_next, send)
    except Exception:
        if is_begun:
            raise
        # Django refuses it, and so does a router that has nothing for it.
        for what in ("startup", "shutdown"):
            await receive_next()
            await send({"type": f"lifespan.{what}.complete"})
