"""Limits: what counts, that they hold exactly, and that every end of a stream makes room."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils.decorators import async_only_middleware
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, areopen
from django_sse.access.owners import Owner, user_key
from django_sse.asgi import get_asgi_application
from django_sse.conf import Conf
from django_sse.groups.entries import GroupState
from django_sse.groups.position import parse_position
from django_sse.streaming.hub import _hubs, current_hub, open_streams
from django_sse.streaming.limits import Occupancy, RequestedStream, TooManyStreams, reached_limit
from django_sse.streaming.stream import Stream
from django_sse.views import EventStreamView
from tests.clients import connected
from tests.http.test_asgi import Request
from tests.streams import View, get, open_stream, reading, until

EVENT_SOURCE = {"Accept": "text/event-stream"}


def a_stream(*groups: str, user: str | None = None, address: str | None = None) -> RequestedStream:
    return RequestedStream(groups, user, address)


def taken_by(*claims: RequestedStream) -> Occupancy:
    occupancy = Occupancy()
    for each in claims:
        occupancy.add(each)
    return occupancy


# Counting


TAKEN = taken_by(
    a_stream("a", "b", user="1", address="192.0.2.1"),
    a_stream("b", user="1", address="192.0.2.2"),
)
ELSEWHERE = taken_by(a_stream("c", user="1", address="192.0.2.1"), a_stream("b"))


@pytest.mark.parametrize(
    ("limits", "wanted", "reached"),
    [
        ({"MAX_STREAMS": 4}, a_stream("a"), "MAX_STREAMS"),
        ({"MAX_STREAMS": 5}, a_stream("a"), None),
        ({"MAX_STREAMS_PER_USER": 3}, a_stream("a", user="1"), "MAX_STREAMS_PER_USER"),
        ({"MAX_STREAMS_PER_USER": 4}, a_stream("a", user="1"), None),
        ({"MAX_STREAMS_PER_USER": 1}, a_stream("a", user="2"), None),
        ({"MAX_STREAMS_PER_USER": 1}, a_stream("a"), None),
        (
            {"MAX_STREAMS_PER_ADDRESS": 2},
            a_stream("a", address="192.0.2.1"),
            "MAX_STREAMS_PER_ADDRESS",
        ),
        ({"MAX_STREAMS_PER_ADDRESS": 2}, a_stream("a", address="192.0.2.2"), None),
        ({"MAX_STREAMS_PER_ADDRESS": 1}, a_stream("a"), None),
        ({"MAX_STREAMS_PER_GROUP": 3}, a_stream("b"), "MAX_STREAMS_PER_GROUP"),
        ({"MAX_STREAMS_PER_GROUP": 3}, a_stream("new", "b"), "MAX_STREAMS_PER_GROUP"),
        ({"MAX_STREAMS_PER_GROUP": 2}, a_stream("a", "c", "new"), None),
        ({"MAX_OPEN_GROUPS": 3}, a_stream("a", "b", "c"), None),
        ({"MAX_OPEN_GROUPS": 3}, a_stream("a", "new"), "MAX_OPEN_GROUPS"),
        ({"MAX_OPEN_GROUPS": 4}, a_stream("a", "new"), None),
        ({"MAX_OPEN_GROUPS": 4}, a_stream("new", "newer"), "MAX_OPEN_GROUPS"),
        # Lowered under open streams: nothing new, but what is there may be joined.
        ({"MAX_OPEN_GROUPS": 1}, a_stream("a"), None),
        ({"MAX_OPEN_GROUPS": 1}, a_stream("new"), "MAX_OPEN_GROUPS"),
        ({"MAX_STREAMS": 1}, a_stream("a"), "MAX_STREAMS"),
        ({}, a_stream("a", user="1", address="192.0.2.1"), None),
    ],
)
def test_a_limit_holds_over_all_loops(
    limits: dict[str, Any], wanted: RequestedStream, reached: str | None
) -> None:
    assert reached_limit(wanted, [TAKEN, ELSEWHERE], Conf(**limits)) == reached


claims = st.builds(
    RequestedStream,
    st.lists(st.sampled_from("abc"), min_size=1, unique=True),
    st.none() | st.sampled_from("12"),
    st.none() | st.sampled_from("xy"),
)


@given(st.lists(claims), st.randoms())
def test_what_is_removed_leaves_no_trace(added: list[RequestedStream], random: Any) -> None:
    occupancy = taken_by(*added)
    random.shuffle(added)
    for each in added:
        occupancy.remove(each)
    assert vars(occupancy) == vars(Occupancy())


@given(
    st.lists(claims),
    st.dictionaries(
        st.sampled_from(
            [
                "MAX_STREAMS",
                "MAX_STREAMS_PER_USER",
                "MAX_STREAMS_PER_ADDRESS",
                "MAX_STREAMS_PER_GROUP",
                "MAX_OPEN_GROUPS",
            ]
        ),
        st.integers(1, 5),
    ),
)
def test_no_order_of_streams_gets_past_a_limit(
    wanted: list[RequestedStream], limits: dict[str, Any]
) -> None:
    hubs = [Occupancy(), Occupancy()]
    conf = Conf(**limits)
    for number, each in enumerate(wanted):
        if not reached_limit(each, hubs, conf):
            hubs[number % 2].add(each)
    assert sum(hub.streams for hub in hubs) <= limits.get("MAX_STREAMS", len(wanted))
    for name, counters in {
        "MAX_STREAMS_PER_USER": [hub.users for hub in hubs],
        "MAX_STREAMS_PER_ADDRESS": [hub.addresses for hub in hubs],
        "MAX_STREAMS_PER_GROUP": [hub.groups for hub in hubs],
    }.items():
        total = counters[0] + counters[1]
        assert all(count <= limits.get(name, len(wanted)) for count in total.values())
    assert len({*hubs[0].groups, *hubs[1].groups}) <= limits.get("MAX_OPEN_GROUPS", 3)


# Streams


class Requested(EventStreamView):
    """The groups that a request names."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")

    async def get_owner(self) -> Any:
        return await self.request.auser() if hasattr(self.request, "auser") else None


class OfToken(Requested):
    """Streams of whom a request names."""

    async def get_owner(self) -> str:
        return self.request.GET["token"]


requested = Requested.as_view()

urlpatterns = [path("requested/", OfToken.as_view())]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("memory_store")]


def limit(settings: Settings, **limits: Any) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", **limits}


def request_of(user: Any = None, *, address: str = "192.0.2.1", **headers: str) -> HttpRequest:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = get("/?group=news", headers={**EVENT_SOURCE, **given})
    request.META["REMOTE_ADDR"] = address

    async def auser() -> Any:
        return user or AnonymousUser()

    request.auser = auser
    return request


async def is_refused(view: View, request: HttpRequest) -> bool:
    """Say whether a request is refused; leave its stream if not."""
    async with reading(await view(request)) as stream:
        return not stream.last_event_id


async def test_there_are_no_limits_by_default() -> None:
    async with connected("news"), connected("news"):
        assert not await is_refused(requested, request_of())


async def test_one_stream_too_many_is_sent_back(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=2, RETRY=10_000)
    async with open_stream(requested, "/?group=a"), open_stream(requested, "/?group=b") as last:
        async with open_stream(requested, "/?group=a", headers=EVENT_SOURCE) as refused:
            assert await refused.rest() == []
            assert 10_000 <= (refused.reconnection_time or 0) <= 20_000
            assert refused.text == f"retry: {refused.reconnection_time}\n\n"
        assert open_streams() == 2
        await last.close()
        async with open_stream(requested, "/?group=a") as stream:
            await apublish("a", "there is room again")
            assert (await stream.next_event()).data == "there is room again"


async def test_a_user_has_his_limit_in_all_his_sessions(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_USER=1)
    one, two = User(pk=1), User(pk=2)
    async with connected("news", owner=Owner({}, user_key(1))):
        assert await is_refused(requested, request_of(one))
        assert not await is_refused(requested, request_of(two))
        assert not await is_refused(requested, request_of())
    assert not await is_refused(requested, request_of(one))


async def test_a_stream_counts_as_its_users_and_as_its_clients_address(settings: Settings) -> None:
    limit(
        settings,
        MAX_STREAMS_PER_USER=5,
        MAX_STREAMS_PER_ADDRESS=5,
        TRUSTED_PROXIES=["10.0.0.0/8"],
    )
    request = request_of(User(pk=7), address="10.0.0.1", X_Forwarded_For="2001:db8::7")
    async with reading(await requested(request)):
        [stream] = current_hub().streams
        assert (stream.user, stream.address) == (user_key(7), "2001:db8::/64")


async def test_a_project_without_users_has_nobody_to_limit(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_USER=1)
    async with open_stream(requested, "/?group=news"), open_stream(requested, "/?group=news"):
        assert open_streams() == 2


async def test_an_address_has_its_limit_behind_a_proxy_that_is_trusted(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_ADDRESS=1)
    async with connected("news", address="192.0.2.1"):
        assert await is_refused(requested, request_of(address="192.0.2.1"))
        # It may say what it likes.
        forged = request_of(address="192.0.2.1", X_Forwarded_For="192.0.2.9")
        assert await is_refused(requested, forged)
        assert not await is_refused(requested, request_of(address="192.0.2.2"))
        limit(settings, MAX_STREAMS_PER_ADDRESS=1, TRUSTED_PROXIES=["10.0.0.0/8"])
        behind = {"address": "10.0.0.1"}
        assert await is_refused(requested, request_of(**behind, X_Forwarded_For="192.0.2.1"))
        assert not await is_refused(requested, request_of(**behind, X_Forwarded_For="192.0.2.2"))


async def test_a_header_in_several_lines_is_read_from_the_last_one(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_ADDRESS=1, TRUSTED_PROXIES=["10.0.0.0/8"])

    async def status(*lines: bytes) -> int:
        request = Request(
            get_asgi_application(),
            "/requested/",
            query_string=b"group=news&token=ada",
            headers=[(b"x-forwarded-for", line) for line in lines],
            client=("10.0.0.1", 4711),
        )
        await request.start()
        await request.disconnect()
        return request.status

    async with connected("news", address="192.0.2.1"):
        # The proxy has added the last line, and the client may have sent the others.
        assert await status(b"192.0.2.9", b"192.0.2.1") == 503
        assert await status(b"192.0.2.9, 192.0.2.8", b"10.0.0.2, 192.0.2.1", b"10.0.0.3") == 503
        assert await status(b"192.0.2.1", b"192.0.2.9") == 200


async def test_a_client_without_an_address_is_not_counted_by_it(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_ADDRESS=1)
    request = request_of()
    del request.META["REMOTE_ADDR"]
    async with connected("news"), connected("news"):
        assert not await is_refused(requested, request)


async def test_a_group_has_its_limit(settings: Settings) -> None:
    limit(settings, MAX_STREAMS_PER_GROUP=1)
    async with connected("news"):
        assert await is_refused(requested, request_of())
        async with open_stream(requested, "/?group=jobs"):
            assert open_streams() == 2


async def test_open_groups_have_their_limit(settings: Settings) -> None:
    limit(settings, MAX_OPEN_GROUPS=2)
    async with connected("a", "b"), connected("b"):
        assert await is_refused(requested, request_of())
        async with open_stream(requested, "/?group=b"):
            assert open_streams() == 3
    assert not await is_refused(requested, request_of())


async def test_a_stream_that_is_over_is_told_so_also_beyond_a_limit(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=1)
    await acancel("done")
    async with connected("news"):
        answer = await requested(get("/?group=done", headers=EVENT_SOURCE))
        assert answer.status_code == 204


async def test_who_may_not_is_told_so_also_beyond_a_limit(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=1)
    async with connected("news"):
        assert (await requested(get("/?group=no name", headers=EVENT_SOURCE))).status_code == 404


# Exactly


async def test_a_limit_holds_for_streams_that_register_at_once(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=5, MAX_STREAMS_PER_GROUP=5)
    responses = [await requested(get("/?group=news", headers=EVENT_SOURCE)) for _ in range(20)]
    # All have passed the view; they register when they are read.
    async with AsyncExitStack() as stack:
        streams = [reading(response) for response in responses]
        readers = await asyncio.gather(*map(stack.enter_async_context, streams))
        assert sum(bool(reader.last_event_id) for reader in readers) == open_streams() == 5
        assert all(reader.text.startswith("retry: ") for reader in readers)


BURST = 150


@async_only_middleware
def giving_way(get_response: View) -> View:
    """Lets others run between a view's answer and its stream, as most middleware does."""

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await get_response(request)
        await asyncio.sleep(0)
        return response

    return middleware


async def connect(number: int, alike: str, headers: dict[str, str]) -> Request:
    """Open one stream of a burst: all have the user, the address or the group alike."""
    group = "same" if alike == "group" else f"group-{number}"
    token = "same" if alike == "user" else f"user-{number}"
    address = "192.0.2.1" if alike == "address" else f"10.0.0.{number}"
    request = Request(
        get_asgi_application(),
        "/requested/",
        query_string=f"group={group}&token={token}".encode(),
        headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        client=(address, 4711),
    )
    await request.start()
    while not request.decoder.last_event_id and not request.ended:
        await request.read()
    return request


async def rush(alike: str, headers: dict[str, str]) -> list[Request]:
    """Let 150 connect at once; return those that are let in, as soon as all are answered."""
    requests = await asyncio.gather(*(connect(n, alike, headers) for n in range(BURST)))
    for request in requests:
        if request.ended:
            await request.rest()
            # By the status, or by the end; after the status was sent by the end to all.
            told_by_status = not request.decoder.reconnection_time
            assert request.status == (503 if told_by_status else 200)
            assert not (told_by_status and headers)
    return [request for request in requests if not request.ended]


@pytest.mark.once
@pytest.mark.parametrize("headers", [EVENT_SOURCE, {}], ids=["EventSource", "other"])
@pytest.mark.parametrize(
    ("limits", "alike"),
    [
        ({"MAX_STREAMS": 5}, ""),
        ({"MAX_STREAMS_PER_USER": 5}, "user"),
        ({"MAX_STREAMS_PER_ADDRESS": 5}, "address"),
        ({"MAX_STREAMS_PER_GROUP": 5}, "group"),
        ({"MAX_OPEN_GROUPS": 5}, ""),
    ],
)
async def test_a_burst_of_150_lets_exactly_five_in_and_five_more_when_they_leave(
    limits: dict[str, int], alike: str, headers: dict[str, str], settings: Settings
) -> None:
    limit(settings, **limits)
    for middleware in ([], [f"{__name__}.giving_way"]):
        settings.MIDDLEWARE = middleware
        let_in = await rush(alike, headers)
        assert len(let_in) == open_streams() == 5
        for request in let_in:
            await request.disconnect()
        await until(lambda: not open_streams())


def test_a_limit_holds_over_event_loops_in_many_threads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(settings, MAX_STREAMS=7)

    def reached_slowly(*args: Any) -> str | None:
        reached = reached_limit(*args)
        # The other threads have time to find the same room.
        time.sleep(0.002)
        return reached

    monkeypatch.setattr("django_sse.streaming.hub.reached_limit", reached_slowly)
    barrier = threading.Barrier(4)

    async def connect() -> int:
        barrier.wait(10)
        hub = current_hub()
        streams = [Stream(hub, {f"group-{number}": 0}) for number in range(10)]
        results = await asyncio.gather(
            *(stream.open() for stream in streams), return_exceptions=True
        )
        assert all(isinstance(result, TooManyStreams) for result in results if result)
        # Nobody leaves before all have tried.
        await asyncio.to_thread(barrier.wait, 10)
        for stream in streams:
            stream.end("test is over")
        return results.count(None)

    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: asyncio.run(connect()), range(4)))
    assert sum(opened) == 7
    assert open_streams() == 0


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop, with all that still runs on it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def test_streams_of_a_loop_that_was_closed_under_them_make_room(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=1)

    async def connect() -> Stream:
        # It leaves no group of the channel layer, so it must not enter one.
        stream = Stream(current_hub(), {"news": 0}, wants_messages=False)
        await stream.open()
        return stream

    async def connect_elsewhere() -> None:
        (await connect()).end("test is over")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect())
    with pytest.raises(TooManyStreams, match="MAX_STREAMS is reached"):
        asyncio.run(connect())
    close(loop)
    asyncio.run(connect_elsewhere())


# However a stream ends


class BrokenState(EventStreamView):
    groups = ["news"]

    async def initial_events(self) -> AsyncIterator[Event]:
        raise RuntimeError("The state is gone.")
        yield


async def leave(stream: Any) -> None:
    await stream.close()


async def cancel(stream: Any) -> None:
    await acancel("news")
    await stream.rest()
    await areopen("news")


async def fail(stream: Any) -> None:
    current_hub()._fail("news", RuntimeError("The group is broken."))
    await stream.rest()


@pytest.fixture
async def staying(memory_store: None, settings: Settings) -> AsyncIterator[None]:
    """A stream beside that stays, and with it the hub and its count; there is room for one more."""
    limit(settings, MAX_STREAMS=2, MAX_STREAMS_PER_GROUP=1, MAX_OPEN_GROUPS=2, BACKLOG_BYTES=1000)
    async with connected("other"):
        yield
        [hub] = _hubs.values()
        assert vars(hub.occupancy) == vars(taken_by(a_stream("other")))


@pytest.mark.usefixtures("staying")
@pytest.mark.parametrize("end", [leave, cancel, fail])
async def test_the_end_of_a_stream_makes_room(end: Any) -> None:
    view = Requested.as_view()
    for _ in range(3):
        async with open_stream(view, "/?group=news", headers=EVENT_SOURCE) as stream:
            assert open_streams() == 2, stream.text
            await end(stream)
            await until(lambda: open_streams() == 1)


@pytest.mark.usefixtures("staying")
async def test_a_state_that_cannot_be_read_makes_room() -> None:
    for _ in range(3):
        async with open_stream(BrokenState.as_view()) as stream:
            with pytest.raises(RuntimeError, match="The state is gone"):
                await stream.rest()


def is_sending(stream: Stream) -> bool:
    return stream._queue.busy_since is not None


@pytest.mark.usefixtures("staying")
async def test_a_slow_client_makes_room() -> None:
    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    # The first event of a group is read from the store, perhaps with those behind it, as one send.
    await apublish("news", "first")
    for _ in range(3):
        stream = Stream(current_hub(), parse_position(await aposition("news"), ["news"]))
        await stream.open()
        stream.serve(never)
        await apublish("news", "x" * 600)
        # Events that come together may be taken bit by bit, as the client reads.
        await until(partial(is_sending, stream))
        for _ in range(2):
            await apublish("news", "x" * 600)
        assert await asyncio.wait_for(stream.ended, 10) == "backlog full"


@pytest.mark.usefixtures("staying")
async def test_a_response_that_is_never_read_takes_no_room() -> None:
    for _ in range(3):
        response = await requested(get("/?group=news"))
        assert response.status_code == 200
        response.close()
    assert not await is_refused(requested, request_of())


@pytest.mark.usefixtures("staying")
async def test_a_store_that_is_down_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(groups: Sequence[str]) -> dict[str, GroupState]:
        raise ConnectionError("The store is down.")

    monkeypatch.setattr(current_hub()._reader, "states", down)
    for _ in range(3):
        stream = Stream(current_hub(), {"news": 0})
        with pytest.raises(ConnectionError, match="The store is down"):
            await stream.open()
        stream.end("request ended")


async def test_a_stream_that_was_refused_makes_no_room_when_it_ends(settings: Settings) -> None:
    limit(settings, MAX_STREAMS=1)
    async with connected("news"):
        refused = Stream(current_hub(), {"news": 0})
        with pytest.raises(TooManyStreams):
            await refused.open()
        refused.end("request ended")
        refused.end("request ended")
        [hub] = _hubs.values()
        assert hub.occupancy.streams == open_streams() == 1
