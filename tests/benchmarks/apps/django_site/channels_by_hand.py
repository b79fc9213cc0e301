"""Channels by hand: a consumer that streams what its group is sent, behind a login."""

import asyncio
import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.apps.django_site.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.exceptions import StopConsumer  # noqa: E402
from channels.generic.http import AsyncHttpConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402

from tests.benchmarks.apps.orders import Orders  # noqa: E402

urlpatterns: list[Any] = []

_HEARTBEAT_SECONDS = 15
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class _Stream(AsyncHttpConsumer):  # type: ignore[misc]
    async def http_request(self, message: dict[str, Any]) -> None:
        if not self.scope["user"].is_authenticated:
            await self.send_response(401, b"")
            raise StopConsumer
        self._group = self.scope["path"].strip("/").replace("/", "-")
        await self.channel_layer.group_add(self._group, self.channel_name)
        await self.send_headers(headers=_HEADERS)
        await self.send_body(b": welcome\n\n", more_body=True)
        self._beating = asyncio.create_task(self._beat())

    async def event(self, message: dict[str, Any]) -> None:
        await self.send_body(f"data: {message['data']}\n\n".encode(), more_body=True)

    async def disconnect(self) -> None:
        self._beating.cancel()
        await self.channel_layer.group_discard(self._group, self.channel_name)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            await self.send_body(b":\n\n", more_body=True)


async def _publish(group: str, data: str) -> None:
    await get_channel_layer().group_send(group, {"type": "event", "data": data})


application = Orders(AuthMiddlewareStack(_Stream.as_asgi()), _publish)
