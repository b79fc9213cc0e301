"""The contenders: how each is started, what it takes part in, and what it is compared with."""

from tests.benchmarks.contenders.asgi import Asgi, DjangoSite
from tests.benchmarks.contenders.base import Contender, Running
from tests.benchmarks.contenders.others import BetterSse, Floor, Nchan

__all__ = ["CONTENDERS", "Contender", "Running", "of_another_python"]

_SITE = "tests.benchmarks.apps.django_site"
_DELIVERY = ("burst", "yielding", "paced", "groups-of-one")
_ALL = (*_DELIVERY, "groups-of-one-async", "idle", "growth")
_OURS = (*_ALL, "connect", "storm", "storm-with-tickets", "publish")
_ON_SERVERS = ("yielding", "paced", "groups-of-one", "idle")
_ON_STORES = ("yielding", "paced", "groups-of-one", "publish")

CONTENDERS: list[Contender] = [
    Floor("floor", "C, epoll, one write an event", (*_DELIVERY, "idle"), "bare"),
    Asgi("bare", "bare ASGI on uvicorn", (*_ALL, "floor-of-connects")),
    Asgi(
        "least",
        "the least that django_sse's promises take, on uvicorn",
        ("paced", "groups-of-one", "groups-of-one-async", "idle"),
        "bare",
        application="tests.benchmarks.apps.least:application",
        rounds=3,
    ),
    Asgi("bare-many", "bare ASGI, a group a stream", ("growth-of-groups",)),
    DjangoSite("ours", "django_sse on uvicorn", _OURS, "bare"),
    DjangoSite(
        "ours-many",
        "django_sse, a user and a group a stream",
        ("growth-of-groups",),
        "bare-many",
        users=20_000,
    ),
    Nchan("nchan", "nchan (nginx)", (*_DELIVERY, "idle"), "bare"),
    BetterSse("better-sse", "better-sse (Node)", (*_DELIVERY, "idle"), "bare"),
    Asgi(
        "sse-starlette",
        "sse-starlette on uvicorn",
        (*_DELIVERY, "idle"),
        "bare",
        application="tests.benchmarks.apps.sse_starlette_site:application",
        needs="sse_starlette",
        rounds=3,
    ),
    DjangoSite(
        "django-eventstream",
        "django-eventstream on uvicorn",
        (*_DELIVERY, "idle"),
        "bare",
        application=f"{_SITE}.eventstream:application",
        app="django_eventstream",
        needs="django_eventstream",
        rounds=3,
    ),
    DjangoSite(
        "channels",
        "Channels by hand on uvicorn",
        (*_DELIVERY, "idle"),
        "bare",
        application=f"{_SITE}.channels_by_hand:application",
        app="channels",
        needs="channels",
        rounds=2,
    ),
    *(
        contender
        for server in ("daphne", "granian", "hypercorn")
        for contender in (
            Asgi(f"bare-{server}", f"bare ASGI on {server}", _ON_SERVERS, server=server, rounds=3),
            DjangoSite(
                f"ours-{server}",
                f"django_sse on {server}",
                _ON_SERVERS,
                f"bare-{server}",
                server=server,
                rounds=3,
            ),
        )
    ),
    *(
        DjangoSite(
            f"ours-{store.lower()}",
            f"django_sse, {store} store",
            _ON_STORES,
            "bare",
            store=store.lower(),
            rounds=3,
        )
        for store in ("SQLite", "PostgreSQL", "Redis")
    ),
    DjangoSite(
        "two-processes",
        "django_sse, SQLite store, two processes",
        ("yielding", "paced"),
        "bare",
        store="sqlite",
        options=("--workers=2",),
        rounds=3,
    ),
]


def of_another_python(python: str, version: str) -> list[Contender]:
    """Return bare ASGI and django_sse on an interpreter other than the one that runs this."""
    return [
        Asgi("bare-other", f"bare ASGI, Python {version}", _DELIVERY, rounds=3, python=python),
        DjangoSite(
            "ours-other",
            f"django_sse, Python {version}",
            _DELIVERY,
            "bare-other",
            rounds=3,
            python=python,
        ),
    ]
