"""Follows a stream with sseclient-py on urllib3: ``URL [own-lines]``."""

import sys
import time

import sseclient
import urllib3

from tests.live.readers.programs import reports

# The default is that of the server, which the client does not tell.
RETRY_SECONDS = 0.1


def plain(url: str) -> None:
    response = urllib3.PoolManager().request("GET", url, preload_content=False)
    for event in sseclient.SSEClient(response).events():
        reports.event(event.event, event.data)


def with_own_lines(url: str) -> None:
    http = urllib3.PoolManager()
    headers = {"Accept": "text/event-stream"}
    while True:
        try:
            response = http.request("GET", url, headers=headers, preload_content=False)
            if response.status == 204:
                return
            for event in sseclient.SSEClient(response).events():
                if event.id:
                    headers["Last-Event-ID"] = event.id
                reports.event(event.event, event.data)
                if event.event == "close":
                    return
        except urllib3.exceptions.HTTPError as error:
            reports.error(repr(error))
        time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    (with_own_lines if sys.argv[2:] else plain)(sys.argv[1])
