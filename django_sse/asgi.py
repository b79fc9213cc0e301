"""The ASGI application to serve: Django's own, which hands event streams off to the server."""

import asyncio
from typing import Any

from django.core.asgi import get_asgi_application as get_django_application

from django_sse.concurrency.tasks import in_own_context
from django_sse.http.hand_off import Application, HandOff, Receive, Scope, Send
from django_sse.http.lifespan import with_producers
from django_sse.http.refusals import with_soft_refusals
from django_sse.http.resume_tickets import resumed
from django_sse.http.stream_views import SCOPE_KEY, leads_to_stream


def get_asgi_application() -> "EventStreamApplication":
    """Return Django's ASGI application, wrapped so that event streams are handed off."""
    return EventStreamApplication(get_django_application())


class EventStreamApplication:
    """Wraps an ASGI application so that event streams are handed off.

    The application is Django's own, or a Channels ``ProtocolTypeRouter`` around it.
    """

    def __init__(self, application: Any) -> None:
        self.application: Application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await with_producers(self.application, scope, receive, send)
            return
        if scope["type"] != "http" or SCOPE_KEY in scope:
            await self.application(scope, receive, send)
            return
        hand_off = HandOff(scope, receive, send)
        try:
            # Neither what Django sets in its context nor what the stream does not need is kept as
            # long as it runs.
            await in_own_context(self._answer(scope, hand_off))
            await hand_off.serve()
        except asyncio.CancelledError:
            await hand_off.send_back()
            raise
        finally:
            hand_off.close()

    async def _answer(self, scope: Scope, hand_off: HandOff) -> None:
        handed_on = {**scope, SCOPE_KEY: hand_off}
        if response := await resumed(handed_on):
            await hand_off.respond(response)
            return
        receive, send = with_soft_refusals(
            scope,
            hand_off.receive,
            hand_off.send,
            lambda: hand_off.is_for_stream or leads_to_stream(scope),
        )
        await self.application(handed_on, receive, send)
