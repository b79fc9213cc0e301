"""Follows a stream with launchdarkly-eventsource: ``URL [own-lines]``."""

import sys

from ld_eventsource import SSEClient
from ld_eventsource.actions import Event, Fault
from ld_eventsource.config import ErrorStrategy, RetryDelayStrategy
from ld_eventsource.errors import HTTPStatusError

from tests.live.readers.programs import reports


def plain(url: str) -> None:
    for event in SSEClient(url).events:
        reports.event(event.event, event.data)


def with_own_lines(url: str) -> None:
    def is_over(error: Exception | None) -> bool:
        return isinstance(error, HTTPStatusError) and error.status == 204

    client = SSEClient(
        url,
        # Soon, so that the tests need not wait: a second by default.
        initial_retry_delay=0.1,
        # It doubles without an end by default.
        retry_delay_strategy=RetryDelayStrategy.default(max_delay=30),
        error_strategy=ErrorStrategy.from_lambda(lambda error: (is_over(error), None)),
    )
    for action in client.all:
        if isinstance(action, Fault) and action.error:
            reports.error(repr(action.error))
        if isinstance(action, Event):
            reports.event(action.event, action.data)
            if action.event == "close":
                client.close()
                return


if __name__ == "__main__":
    (with_own_lines if sys.argv[2:] else plain)(sys.argv[1])
