"""Follows a stream with httpx-sse: ``URL [own-lines]``."""

import sys
import time

import httpx
from httpx_sse import connect_sse

from tests.live.readers.programs import reports


def plain(url: str) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            reports.event(event.event, event.data)


def with_own_lines(url: str) -> None:
    last_event_id, retry = "", 0.1
    # Longer than the time between two heartbeats: its default is five seconds.
    with httpx.Client(timeout=60) as client:
        while True:
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            try:
                with connect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code == 204:
                        return
                    for event in source.iter_sse():
                        last_event_id = event.id
                        retry = retry if event.retry is None else event.retry / 1000
                        # Comments and blocks without data arrive as events, too.
                        if event.data:
                            reports.event(event.event, event.data)
                        if event.event == "close":
                            return
            except httpx.TransportError as error:
                reports.error(repr(error))
            time.sleep(retry)


if __name__ == "__main__":
    (with_own_lines if sys.argv[2:] else plain)(sys.argv[1])
