"""An application that answers whether the server's ``send`` may be called outside of a task."""

from django_sse.http.hand_off import Receive, Scope, Send
from django_sse.servers.own_send import needs_no_task


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
        return
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(needs_no_task(send)).encode()})
