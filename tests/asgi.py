"""The test project's ASGI applications: as a project has it, and without the wrapper."""

import os
from pathlib import Path
from typing import Any

from django.core.asgi import get_asgi_application as get_django_application

from django_sse.asgi import (
    EventStreamApplication,
    Message,
    Receive,
    Scope,
    Send,
    get_asgi_application,
)


class RequestLog:
    """Appends a line to a file for each request, and one with its status for each response."""

    def __init__(self, application: Any, path: Path) -> None:
        self.application = application
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(f"{message['status']} {scope['path']}")
            await send(message)

        if scope["type"] == "http":
            self._note(f"request {scope['path']}")
        await self.application(scope, receive, send_logged)

    def _note(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")


unwrapped = get_django_application()

if "LIVE_REQUEST_LOG" in os.environ:
    application = EventStreamApplication(
        RequestLog(unwrapped, Path(os.environ["LIVE_REQUEST_LOG"]))
    )
else:
    application = get_asgi_application()
