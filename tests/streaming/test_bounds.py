"""What a process keeps does not grow with what others make up: each new name is forgotten."""

import asyncio
import gc
import inspect
import pkgutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sized
from importlib import import_module
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pytest
from channels.layers import get_channel_layer
from django.http import HttpRequest
from django.urls import path
from pytest_django import Settings

import django_sse
from django_sse import Event
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_generator, on_message
from django_sse.groups.entries import Hint
from django_sse.groups.position import format_position
from django_sse.logs import log_once
from django_sse.streaming.hub import current_hub, open_streams
from django_sse.streaming.tally import refusals
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.http.test_asgi import Request
from tests.streams import open_stream

NAMES = 250
HOLDERS = (dict, list, set, frozenset, tuple, deque, WeakKeyDictionary, WeakSet)
EVENT_SOURCE = {"accept": "text/event-stream"}


class Requested(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def get_owner(self) -> str | None:
        return self.request.GET.get("owner")

    @on_message("news.update")
    def news_update(self, message: dict[str, Any]) -> Event:
        return Event(message["text"])


@event_generator
async def job(request: HttpRequest) -> AsyncIterator[str]:
    yield "done"


urlpatterns = [path("requested/", Requested.as_view()), path("job/", job)]

pytestmark = [
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("memory_store", "limited"),
    # What it counts is the library's own.
    pytest.mark.once,
]


@pytest.fixture
def limited(memory_store: None, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """All limits count, so that each has to keep what it counts; and pytest keeps no log."""
    for log in ("django", "django_sse"):
        caplog.set_level("CRITICAL", log)
    settings.DJANGO_SSE = {
        "STORE": "memory",
        "MAX_STREAMS": 100,
        "MAX_STREAMS_PER_USER": 100,
        "MAX_STREAMS_PER_ADDRESS": 100,
        "MAX_STREAMS_PER_GROUP": 2,
        "MAX_OPEN_GROUPS": 100,
        "TRUSTED_PROXIES": ["10.0.0.0/8"],
    }


# Caches


def modules() -> Iterator[ModuleType]:
    for module in pkgutil.walk_packages(django_sse.__path__, "django_sse."):
        if ".migrations." not in module.name:
            yield import_module(module.name)


def caches() -> Iterator[Any]:
    for module in modules():
        for owner in (
            module,
            *(value for value in vars(module).values() if inspect.isclass(value)),
        ):
            for value in vars(owner).values():
                if hasattr(value, "cache_parameters") and value.__module__ == module.__name__:
                    yield value


def test_a_cache_has_one_entry_or_a_bound() -> None:
    found = set(caches())
    assert log_once in found
    for cache in found:
        keyed = bool(inspect.signature(cache.__wrapped__).parameters)
        assert not keyed or cache.cache_parameters()["maxsize"], cache


# Whatever keeps it


def is_own(value: Any) -> bool:
    module = getattr(value if inspect.isclass(value) else type(value), "__module__", "")
    return str(module).startswith("django_sse")


def entries_held() -> int:
    """Return how many entries there are in all that the library's own objects hold."""
    held: dict[int, Any] = {}
    unseen: list[Any] = [vars(module) for module in modules()]
    while unseen:
        each = unseen.pop()
        if id(each) not in held and (is_own(each) or isinstance(each, HOLDERS)):
            held[id(each)] = each
            unseen += gc.get_referents(each)
    return sum(len(each) for each in held.values() if isinstance(each, Sized))


async def assert_forgotten(do: Callable[[int], Awaitable[object]]) -> None:
    """Do something with many different names, and see that nothing has an entry for each."""
    await do(0)
    before = entries_held()
    for number in range(1, NAMES + 1):
        await do(number)
    assert entries_held() - before < NAMES / 4


def name(number: int) -> str:
    return f"name-{number}"


async def ask(query: str = "", url: str = "/requested/", headers: Any = (), **scope: Any) -> int:
    """Return the status of an answer, and leave."""
    encoded = [(key.encode(), value.encode()) for key, value in dict(headers).items()]
    request = Request(
        get_asgi_application(), url, query_string=query.encode(), headers=encoded, **scope
    )
    await request.start()
    await request.disconnect()
    return request.status


async def ask_for_a_group(number: int) -> None:
    assert await ask(f"group={name(number)}") == 200


async def ask_for_no_group(number: int) -> None:
    assert await ask(f"group=!{name(number)}") == 404


async def ask_as_an_owner(number: int) -> None:
    assert await ask(f"group=news&owner={name(number)}") == 200


async def ask_from_an_address(number: int) -> None:
    address = f"2001:db8:{number:x}::1"
    headers = {"x-forwarded-for": f"{name(number)}, {address}"}
    assert await ask("group=news", headers=headers, client=("10.0.0.1", 0)) == 200


async def ask_with_a_position(number: int) -> None:
    for sent in (name(number), format_position({name(number): number})):
        assert await ask("group=news", headers={"last-event-id": sent}) == 200


async def ask_in_vain(number: int) -> None:
    query = f"group=full&owner={name(number)}"
    assert await ask(query, headers={"user-agent": name(number)}) == 503
    assert await ask(query, headers=EVENT_SOURCE) == 200


async def ask_for_a_job(number: int) -> None:
    assert await ask(url="/job/", headers={"last-event-id": name(number)}) == 200


async def ask_by_a_method(number: int) -> None:
    assert await ask(f"group={name(number)}", method=f"X{number}") == 405


@pytest.mark.parametrize(
    "do",
    [
        ask_for_a_group,
        ask_for_no_group,
        ask_as_an_owner,
        ask_from_an_address,
        ask_with_a_position,
        ask_in_vain,
        ask_for_a_job,
        ask_by_a_method,
    ],
)
async def test_what_a_client_names_is_forgotten(do: Callable[[int], Awaitable[object]]) -> None:
    before = set(refusals.counts)
    # The hub stays, and with it what it keeps.
    async with connected("full"), connected("full"):
        await assert_forgotten(do)
        assert open_streams() == 2
    assert refusals.counts.keys() <= before | {"MAX_STREAMS_PER_GROUP"}


@pytest.mark.parametrize(
    "message",
    [
        lambda number: {"type": name(number)},
        lambda number: {"type": "news.update", "text": name(number)},
        lambda number: {"type": "sse.event", "data": "x", "event": name(number)},
        lambda number: {"type": "sse.event", name(number): "x"},
    ],
    ids=["type", "handler", "event", "field"],
)
async def test_what_a_message_of_the_layer_names_is_forgotten(
    message: Callable[[int], dict[str, str]],
) -> None:
    layer = get_channel_layer()
    async with open_stream(Requested.as_view(), "/?group=news") as stream:

        async def send(number: int) -> None:
            await layer.group_send("news", message(number))
            await layer.group_send("news", {"type": "sse.event", "data": "taken"})
            await stream.until("taken")
            stream.received = b""

        await assert_forgotten(send)


async def test_a_doorbell_for_a_group_that_nobody_follows_is_forgotten() -> None:
    async with connected("news"):

        async def ring(number: int) -> None:
            current_hub().hear_soon([Hint(name(number), number, cancelled=False)])
            await asyncio.sleep(0)

        await assert_forgotten(ring)
