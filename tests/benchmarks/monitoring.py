"""``python -m tests.benchmarks.monitoring``: prints what it costs to count and to monitor.

20,000 events a second go to 1,000 streams of one server: for some seconds without any counting,
which is taken out of the code, or counted, or counted and scraped as by a Prometheus, in an order
that changes.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from threading import Event, Thread

from tests.benchmarks.contenders.asgi import DjangoSite
from tests.benchmarks.contenders.base import Running
from tests.benchmarks.machine import build, cores, description, pinned_to, raise_file_limit
from tests.benchmarks.trial import Trial, trial

_STREAMS = 1000
_MILLISECONDS = 50
# More often than a Prometheus does by default, which is once a minute.
_SCRAPE_SECONDS = 5.0
_MODES = ("without", "counted", "scraped")


def main() -> int:
    """Return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.monitoring")
    parser.add_argument("--rounds", type=int, default=10, help="of each of the three")
    parser.add_argument("--seconds", type=int, default=5, help="of each of the three, in a round")
    options = parser.parse_args()
    raise_file_limit()
    # The core of the server is the server's alone.
    pinned_to(cores()[1])()
    print(f"{description()}; Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f}")
    site = DjangoSite(
        "monitored",
        "django_sse",
        (),
        application="tests.benchmarks.apps.django_site.monitored:application",
        needs="prometheus_client",
    )
    costs: dict[str, list[float]] = {mode: [] for mode in _MODES}
    remarks = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        load = build("load", Path(place))
        with trial(site, Path(place), load) as running:
            running.open("/all/", _STREAMS)
            for number in range(options.rounds + 1):
                for mode in random.sample(_MODES, len(_MODES)):
                    cost, remark = _measure(running, mode, options.seconds)
                    # The first round warms up.
                    if number:
                        costs[mode].append(cost)
                    if remark:
                        remarks.append(f"{mode}: {remark}")
    print("| | µs of CPU a delivered event | times without |")
    print("|---|---|---|")
    for mode in _MODES:
        times = [
            cost / without for cost, without in zip(costs[mode], costs["without"], strict=True)
        ]
        print(f"| {mode} | {median(costs[mode]):.2f} | {median(times):.3f} |")
    print("\n".join(remarks) or "Nothing was lost.")
    return bool(remarks)


def _measure(running: Trial, mode: str, seconds: int) -> tuple[float, str]:
    is_counted = mode != "without"
    if not int(running.server.order("count", on=int(is_counted))):
        raise RuntimeError("Nothing counts.")
    events = seconds * 1000 // _MILLISECONDS
    with _scraped(running.server) if mode == "scraped" else _left_alone():
        cost, _, remark = running.deliver(
            _STREAMS * events, "paced", events=events, milliseconds=_MILLISECONDS
        )
    return cost, remark


@contextmanager
def _scraped(server: Running) -> Iterator[None]:
    ends = Event()

    def scrape() -> None:
        while not ends.is_set():
            connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("GET", "/metrics/", headers={"Host": "127.0.0.1"})
            body = connection.getresponse().read()
            connection.close()
            assert b"django_sse_events_delivered_total" in body
            ends.wait(_SCRAPE_SECONDS)

    thread = Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@contextmanager
def _left_alone() -> Iterator[None]:
    yield


if __name__ == "__main__":
    sys.exit(main())
