"""Channel layers that show what is sent through them."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

from channels.layers import BaseChannelLayer, InMemoryChannelLayer


class GatedLayer(BaseChannelLayer):  # type: ignore[misc]
    """Keeps what is sent to groups, and holds it back while the gate is closed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = asyncio.Event()
        self.gate.set()
        self.sending = 0
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[BaseException] = []

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.sending += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        self.sent.append((group, message))


class FileLayer(BaseChannelLayer):  # type: ignore[misc]
    """Writes what is sent to groups to a file, a line each, after some seconds."""

    def __init__(self, path: str, delay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = Path(path)
        self.delay = delay

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await asyncio.sleep(self.delay)
        line = {
            "group": group,
            "message": message,
            "thread": threading.current_thread().name,
            "process": os.getpid(),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class OwnInMemoryLayer(InMemoryChannelLayer):  # type: ignore[misc]
    """What a project may make of the in-memory layer, perhaps to let it reach further."""


def layer(path: str) -> dict[str, Any]:
    """Return ``CHANNEL_LAYERS`` with one layer, of the class with this path."""
    return {"default": {"BACKEND": path}}
