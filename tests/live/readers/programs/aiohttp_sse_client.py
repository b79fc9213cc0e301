"""Follows a stream with aiohttp-sse-client: ``URL [own-lines]``."""

import asyncio
import sys
from datetime import timedelta

import aiohttp
from aiohttp_sse_client.client import EventSource

from tests.live.readers.programs import reports

# Soon, so that the tests need not wait: five seconds by default, doubled before each attempt.
SOON = timedelta(seconds=0.1)


def failed() -> None:
    reports.error("it could not connect, or the stream has ended")


async def plain(url: str) -> None:
    async with EventSource(url, reconnection_time=SOON, on_error=failed) as source:
        try:
            async for event in source:
                reports.event(event.type or "message", event.data)
        except ConnectionError:
            pass


async def with_own_lines(url: str) -> None:
    headers: dict[str, str] = {}
    # The whole stream may take five minutes by default.
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    options = {"headers": headers, "timeout": timeout}
    while True:
        try:
            async with EventSource(
                url, reconnection_time=SOON, on_error=failed, **options
            ) as source:
                async for event in source:
                    headers["Last-Event-Id"] = event.last_event_id
                    reports.event(event.type or "message", event.data)
                    if event.type == "close":
                        return
        # What it raises after a 204, or any other answer that is no stream.
        except ConnectionAbortedError:
            return
        except (aiohttp.ClientError, TimeoutError) as error:
            reports.error(repr(error))
        await asyncio.sleep(SOON.total_seconds())


if __name__ == "__main__":
    asyncio.run((with_own_lines if sys.argv[2:] else plain)(sys.argv[1]))
