"""The test project's ASGI applications: as a project has it, and without the wrapper."""

import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from django.core.asgi import get_asgi_application as get_django_application

from django_sse.asgi import get_asgi_application
from django_sse.http.hand_off import Message, Receive, Scope, Send


class RequestLog:
    """Appends a line to a file for each request, and one with its status for each response.

    Goes round everything else: what it notes is what the client is sent.
    """

    def __init__(self, application: Any, path: Path) -> None:
        self.application = application
        self.path = path
        self.path.touch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(number, message["status"], target, last_event_id)
            await send(message)

        if scope["type"] == "http":
            number = uuid4().hex
            query = scope["query_string"].decode()
            # Where an EventStream says it.
            asked = dict(parse_qsl(query)).get("lastEventId", "")
            last_event_id = dict(scope["headers"]).get(b"last-event-id", asked.encode()).decode()
            rest = [part for part in query.split("&") if not part.startswith("lastEventId=")]
            target = f"{scope['path']}?{'&'.join(rest)}" if any(rest) else scope["path"]
            self._note(number, "request", target, last_event_id)
        await self.application(scope, receive, send_logged)

    def _note(self, number: str, what: str | int, target: str, last_event_id: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{json.dumps([number, what, time.time(), target, last_event_id])}\n")


unwrapped = get_django_application()

application: Any = get_asgi_application()

if "LIVE_REQUEST_LOG" in os.environ:
    application = RequestLog(application, Path(os.environ["LIVE_REQUEST_LOG"]))
