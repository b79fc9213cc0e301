"""``python -m tests.benchmarks.apps.django_site.publishing COUNT GROUPS``: prints what publishing
costs in this process, and what it is compared with, in CPU microseconds for each event."""

import json
import sys
import time
from collections.abc import Callable
from itertools import count

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from django_sse import publish, publish_many  # noqa: E402
from tests.benchmarks.apps.django_site.models import Row  # noqa: E402
from tests.benchmarks.apps.payload import payload  # noqa: E402

_MANY = 100
_WARM_UP = 50
_DRAINED_SECONDS = 30
_INSERT = f"INSERT INTO {Row._meta.db_table} (name, data) VALUES (%s, %s)"

_numbers = count(1)


def main(times: int, groups: int) -> dict[str, float]:
    """Return the figures; each work is done so many times.

    Args:
        groups: How many groups the store has in the end.
    """
    costs = {
        "publish": _cost(_publish, times),
        "publish_many": _cost(_publish_many, times // _MANY or 1) / _MANY,
    }
    costs |= _in_transaction(times)
    costs["ORM create"] = _cost(_create, times)
    costs["INSERT"] = _cost(_insert, times)
    costs["executemany"] = _cost(_insert_many, times // _MANY or 1) / _MANY
    if isinstance(settings.DJANGO_SSE["STORE"], dict):
        costs |= _on_redis(settings.DJANGO_SSE["STORE"]["OPTIONS"]["url"], times)
    for number in range(0, groups, _MANY):
        publish_many((f"many-{number + each}", payload(1)) for each in range(_MANY))
    steps = iter(range(times + _WARM_UP))
    costs["publish, many groups"] = _cost(
        lambda: publish(f"many-{next(steps) * 7919 % groups}", payload(2)), times
    )
    return costs


def _cost(work: Callable[[], object], times: int) -> float:
    for _ in range(min(_WARM_UP, times)):
        work()
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times * 1e6


def _data() -> str:
    return payload(next(_numbers))


def _publish() -> None:
    publish("one", _data())


def _publish_many() -> None:
    publish_many([("one", _data()) for _ in range(_MANY)])


def _in_transaction(times: int) -> dict[str, float]:
    """All of a publish in a transaction, and what the user's code waits for before the commit."""
    first = publish("staged", _data()).number
    assert first is not None
    for _ in range(_WARM_UP):
        _publish_in_transaction()
    before = time.process_time()
    own = sum(_publish_in_transaction() for _ in range(times))
    _wait_until_numbered(first + _WARM_UP + times)
    return {
        "publish in a transaction": (time.process_time() - before) / times * 1e6,
        "... the user's part": own / times * 1e6,
    }


def _publish_in_transaction() -> float:
    """Publish in a transaction. Return the seconds of CPU that passed before the commit."""
    with transaction.atomic():
        begun = time.thread_time()
        publish("staged", _data())
        return time.thread_time() - begun


def _wait_until_numbered(last: int) -> None:
    """Wait until the outbox is empty: the next event then comes after all that waited in it."""
    deadline = time.monotonic() + _DRAINED_SECONDS
    for asked in count(1):
        number = publish("staged", _data()).number
        if (number is not None and number >= last + asked) or time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _create() -> None:
    with transaction.atomic():
        Row._default_manager.create(name="one", data=_data().encode())


def _insert() -> None:
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, ["one", _data().encode()])


def _insert_many() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(_INSERT, [("one", _data().encode()) for _ in range(_MANY)])


def _on_redis(url: str, times: int) -> dict[str, float]:
    import redis

    client = redis.Redis.from_url(url)

    def add() -> None:
        client.xadd("stream", {"data": _data()}, maxlen=1000, approximate=True)

    def add_many() -> None:
        pipeline = client.pipeline(transaction=False)
        for _ in range(_MANY):
            pipeline.xadd("stream", {"data": _data()}, maxlen=1000, approximate=True)
        pipeline.execute()

    return {
        "XADD": _cost(add, times),
        "XADD, pipelined": _cost(add_many, times // _MANY or 1) / _MANY,
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
