"""A namespace keeps the groups of one tenant, or site, apart from those of all others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from enum import Enum
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.management import call_command
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template import engines
from django.test import AsyncClient, RequestFactory, override_settings
from django.urls import path
from pytest_django import Settings

from django_sse import Event, acancel, aposition, apublish, channel_group, publish
from django_sse.access.logins import LoginCheck
from django_sse.decorators import event_stream, no_content_when_cancelled, on_message
from django_sse.groups.entries import Hint
from django_sse.groups.names import (
    NAME_LENGTH,
    OWNER_KEY_LENGTH,
    OWNER_PREFIX,
    validate_group_or_owner_key,
)
from django_sse.groups.namespaces import full_name, layer_group, plain_name, prefix_of
from django_sse.views import EventStreamView
from tests import tenancy
from tests.failures import Panic
from tests.streams import EventReader, get, open_stream, reading, until
from tests.tenancy import NAMESPACE, entered
from tests.users import logged_in, user

pytestmark = pytest.mark.urls(__name__)

# A tenant of the thread, as a connection to a database has one.
of_thread = threading.local()


def current_of_thread() -> str:
    return getattr(of_thread, "tenant", "nobody's")


@contextmanager
def thread_entered(name: str) -> Iterator[None]:
    before = current_of_thread()
    of_thread.tenant = name
    try:
        yield
    finally:
        of_thread.tenant = before


OF_THREAD = {
    "NAMESPACE": f"{__name__}.current_of_thread",
    "NAMESPACE_CONTEXT": f"{__name__}.thread_entered",
}


def tenant_middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., Any]:
    """A sync middleware that finds the tenant of a request."""

    def middleware(request: HttpRequest) -> HttpResponse:
        with thread_entered(request.headers["X-Tenant"]):
            return get_response(request)

    return middleware


class News(EventStreamView):
    groups = ["news"]

    async def get_owner(self) -> int:
        return 7

    @on_message("shout")
    def shout(self, message: dict[str, Any]) -> Event:
        return Event(message["text"].upper())


class Asked(EventStreamView):
    """Says at its thread's tenant whether it may go on, twice in the same question."""

    groups = ["news"]
    seen: list[tuple[str, str]] = []
    threads: set[int] = set()
    forbidden: set[str] = set()
    ask: Callable[[], Awaitable[None]] | None = None

    async def still_allowed(self) -> bool:
        self.threads.add(await sync_to_async(threading.get_ident)())
        first = await sync_to_async(current_of_thread)()
        if self.ask:
            await type(self).ask()  # type: ignore[misc]
        # Others are asked about meanwhile.
        await asyncio.sleep(0.01)
        self.seen.append((first, await sync_to_async(current_of_thread)()))
        return first not in self.forbidden


@no_content_when_cancelled("news")
def own_sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse("mine")


@no_content_when_cancelled("news")
async def own(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(["mine"])


@event_stream("news")
async def guarded(request: HttpRequest) -> None: ...


news = News.as_view()
asked = Asked.as_view()
urlpatterns = [path("news/", news), path("asked/", asked), path("guarded/", guarded)]


@pytest.fixture
def in_memory(settings: Settings) -> None:
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"STORE": "memory", **NAMESPACE}


@pytest.fixture
def in_threads(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MIDDLEWARE = [f"{__name__}.tenant_middleware"]
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1, **OF_THREAD}
    for name, value in (("seen", []), ("threads", set()), ("forbidden", set()), ("ask", None)):
        monkeypatch.setattr(Asked, name, value)


async def answer(tenant: str, url: str = "/asked/") -> HttpResponseBase:
    """Return what a tenant's view answers."""
    return await AsyncClient().get(url, headers={"X-Tenant": tenant})


def publish_in(tenant: str, *arguments: Any) -> None:
    with thread_entered(tenant):
        publish(*arguments)


# Names


class Kind(str, Enum):  # noqa: UP042  (text of another kind)
    NORTH = "north"


NAMES = [
    "",
    "north",
    "North",
    "north.news",
    "n" * 63,
    "n" * 64,
    "n" * 1000,
    "localhost:8000",
    "münchen",
    "a/b",
    "a b",
    "a\nb",
    "{a}",
    "~",
    "=",
    "\0",
    "\ud800",
    "🌍",
]


@pytest.mark.parametrize("group", ["news", "g" * 99, OWNER_PREFIX + "0" * 32])
def test_no_two_namespaces_make_one_name_of_any_group(group: str) -> None:
    names = [full_name(namespace, group) for namespace in NAMES]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= (OWNER_KEY_LENGTH if group.startswith(OWNER_PREFIX) else NAME_LENGTH)
        assert name.startswith(OWNER_PREFIX) == group.startswith(OWNER_PREFIX)
        if not group.startswith(OWNER_PREFIX):
            assert plain_name(name) == group
            assert prefix_of(name) + group == name
        assert validate_group_or_owner_key(name) == name
        assert Hint.decode(Hint(name, 10**16, True).encode()) == Hint(name, 10**16, True)
        assert len(Hint(name, 10**16, True).encode()) <= 190


def test_names_are_as_they_were_without_a_namespace() -> None:
    for name in ("news", OWNER_PREFIX + "0" * 32, ""):
        assert full_name("", name) == name
    assert layer_group("news") == "news"


@pytest.mark.usefixtures("in_memory", "everything_ends")
@pytest.mark.parametrize("name", NAMES)
async def test_any_text_is_a_namespace(name: str) -> None:
    with entered(name):
        async with open_stream(news) as stream:
            with entered("another one"):
                await apublish("news", "elsewhere")
            await apublish("news", "here")
            assert (await stream.next_event()).data == "here"


@pytest.mark.usefixtures("in_memory")
def test_a_member_of_an_enum_of_texts_is_its_value() -> None:
    with entered(Kind.NORTH):
        of_member = publish("news", "hi").id
    with entered("north"):
        assert publish("news", "hi").id[:11] == of_member[:11]  # type: ignore[index]


# Where the function is asked


@pytest.mark.usefixtures("in_threads", "everything_ends")
@pytest.mark.parametrize("url", ["/news/", "/guarded/"])
async def test_a_view_is_of_the_tenant_that_a_sync_middleware_found(url: str) -> None:
    async with (
        reading(await answer("north", url)) as north,
        reading(await answer("south", url)) as south,
    ):
        for name in ("south", "north"):
            await sync_to_async(publish_in)(name, "news", f"of the {name}")
        for name, stream in (("north", north), ("south", south)):
            assert (await stream.next_event()).data == f"of the {name}"


@pytest.mark.usefixtures("in_threads", "everything_ends")
async def test_async_code_publishes_as_the_thread_of_its_orm_does() -> None:
    async with reading(await answer("north", "/news/")) as north:

        def in_thread() -> None:
            with thread_entered("north"):
                async_to_sync(apublish)("news", "from async code")

        await sync_to_async(in_thread)()
        assert (await north.next_event()).data == "from async code"


def raising() -> str:
    raise LookupError("No tenant is current.")


def nothing() -> None: ...


def number() -> int:
    return 7


async def asynchronous() -> str:
    return "north"


not_callable = "north"


@pytest.mark.parametrize("returned", ["nothing", "number"])
async def test_what_is_no_name_is_refused(returned: str, settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "NAMESPACE": f"{__name__}.{returned}"}
    message = rf"{__name__}\.{returned}, which .*NAMESPACE.* as a str, not (None|7)"
    with pytest.raises(ImproperlyConfigured, match=message):
        await apublish("news", "hi")
    with pytest.raises(ImproperlyConfigured, match=message):
        await aposition("news")
    with pytest.raises(ImproperlyConfigured, match=message):
        await news(get())


async def test_what_the_function_raises_says_whose_it_is(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "NAMESPACE": f"{__name__}.raising"}
    with pytest.raises(LookupError, match="No tenant") as raised:
        await apublish("news", "hi")
    [note] = raised.value.__notes__
    assert f"NAMESPACE'], {__name__}.raising" in note


@pytest.mark.parametrize("key", ["NAMESPACE", "NAMESPACE_CONTEXT"])
@pytest.mark.parametrize(
    "path", ["no.such.module", f"{__name__}.no_such_name", "news", "not_callable", "asynchronous"]
)
def test_a_path_of_no_function_is_an_error_of_the_check_and_of_use(
    key: str, path: str, settings: Settings
) -> None:
    path = f"{__name__}.{path}" if path in ("not_callable", "asynchronous") else path
    settings.DJANGO_SSE = {"STORE": "memory", **NAMESPACE, key: path}
    found = {problem.id: problem.msg for problem in run_checks(tags=["django_sse"])}
    assert f"['{key}'] cannot be used" in found["django_sse.E007"]
    if key == "NAMESPACE":
        with pytest.raises(ImproperlyConfigured, match="NAMESPACE"):
            publish("news", "hi")


def test_a_context_without_a_namespace_is_an_error(settings: Settings) -> None:
    settings.DJANGO_SSE = {"NAMESPACE_CONTEXT": NAMESPACE["NAMESPACE_CONTEXT"]}
    assert [problem.id for problem in run_checks(tags=["django_sse"])][:1] == ["django_sse.E001"]


@pytest.mark.django_db(transaction=True)
async def test_a_user_can_be_saved_where_no_tenant_is_current(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", **NAMESPACE}
    ada = await user()
    ada.is_active = False
    await ada.asave()
    assert not (await User.objects.aget(pk=ada.pk)).is_active
    assert "could not be told of a user" in caplog.text


# Elsewhere that groups are named


@pytest.mark.usefixtures("in_memory", "everything_ends")
async def test_plain_messages_reach_the_streams_of_a_tenant() -> None:
    layer: Any = get_channel_layer()
    groups = {}
    with entered("south"):
        groups["south"] = await sync_to_async(channel_group)("news")
    with entered("north"):
        async with open_stream(news) as north:
            groups["north"] = await sync_to_async(channel_group)("news")
            # Nobody's, and another one's.
            for group in ("news", groups["south"]):
                await layer.group_send(group, {"type": "sse.event", "data": "elsewhere"})
            await layer.group_send(groups["north"], {"type": "shout", "text": "here"})
            await layer.group_send(groups["north"], {"type": "sse.event", "data": "and here"})
            assert [(await north.next_event()).data for _ in range(2)] == ["HERE", "and here"]


def test_nobody_can_work_out_the_channels_group_of_a_tenants_messages() -> None:
    """Who is no tenant's may name a group of his own after it."""
    names = set()
    for secret in ("one", "another"):
        with override_settings(SECRET_KEY=secret):
            names.add(layer_group("north/news"))
    assert len(names) == 2


async def test_the_channels_group_is_the_group_itself_without_a_namespace() -> None:
    assert await sync_to_async(channel_group)("news") == "news"
    with pytest.raises(ValueError, match="not a group name"):
        await sync_to_async(channel_group)("no/group")
    with pytest.raises(SynchronousOnlyOperation, match="sync_to_async"):
        channel_group("news")


@pytest.mark.usefixtures("in_memory", "everything_ends")
async def test_views_of_ones_own_are_stopped_by_a_cancel_of_their_tenant() -> None:
    with entered("north"):
        await acancel("news")
    for name, status in (("north", 204), ("south", 200)):
        with entered(name):
            assert (await own(get())).status_code == status
            of_sync = await sync_to_async(own_sync)(RequestFactory().get("/"))
            assert of_sync.status_code == status


@pytest.mark.usefixtures("in_memory")
def test_the_template_tag_gives_a_position_of_the_tenant() -> None:
    template = engines["django"].from_string(
        '{% load django_sse %}{% event_stream_position "news" %}'
    )
    with entered("north"):
        published = publish("news", "hi")
        assert template.render() == published.id
    with entered("south"):
        assert template.render() != published.id


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
async def test_commands_are_of_the_tenant_that_they_run_in(settings: Settings) -> None:
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"SYNC_INTERVAL": 0.05, **NAMESPACE}

    def command(name: str, *arguments: str) -> str:
        output = StringIO()
        call_command(name, *arguments, stdout=output)
        return output.getvalue()

    with entered("north"):
        async with open_stream(news) as north:
            with entered("south"):
                await sync_to_async(command)("sse_push", "news", "elsewhere")
                await sync_to_async(command)("sse_cancel", "news")
            said = await sync_to_async(command)("sse_push", "news", "here")
            assert said.startswith("Published to news as ")
            assert (await north.next_event()).data == "here"


@pytest.mark.usefixtures("everything_ends")
@pytest.mark.parametrize("limit", ["MAX_STREAMS_PER_USER", "MAX_STREAMS_PER_GROUP"])
async def test_a_limit_counts_the_users_and_groups_of_tenants_apart(
    limit: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {"STORE": "memory", limit: 1, **NAMESPACE}
    for_others = get(headers={"Accept": "*/*"})
    with entered("north"):
        async with open_stream(news):
            assert (await news(for_others)).status_code == 503
            with entered("south"):
                async with open_stream(news):
                    assert (await news(for_others)).status_code == 503


# What is asked of open streams


async def read_until(stream: EventReader, condition: Callable[[], object]) -> None:
    await until(condition)
    assert not stream.ended


@pytest.mark.usefixtures("in_threads", "everything_ends")
async def test_still_allowed_is_asked_in_the_tenant_of_its_stream() -> None:
    names = [f"tenant-{number}" for number in range(4)]
    Asked.forbidden.add("tenant-2")
    readers = {}
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        leave = asyncio.Event()

        async def client(name: str) -> None:
            async with reading(await answer(name)) as readers[name]:
                await leave.wait()

        for name in names:
            group.create_task(client(name))
        await until(lambda: {seen for seen, _ in Asked.seen} == set(names))
        await until(lambda: readers["tenant-2"].ended)
        assert [name for name in names if readers[name].ended] == ["tenant-2"]
        [close] = await readers["tenant-2"].rest()
        assert close.json() == {"reason": "not allowed any more"}
        leave.set()
    assert all(first == second for first, second in Asked.seen)
    # The requests' own threads are long gone.
    assert threading.get_ident() not in Asked.threads


@pytest.mark.usefixtures("in_threads", "everything_ends")
@pytest.mark.parametrize("hangs", ["in its thread", "on the loop"])
async def test_one_that_hangs_holds_up_no_other_tenants_question(
    hangs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sse.streaming.permission_rechecks._ANSWER_SECONDS", 0.3)
    release = threading.Event()

    async def hang() -> None:
        if await sync_to_async(current_of_thread)() != "south":
            return
        if hangs == "on the loop":
            await asyncio.Event().wait()
        await sync_to_async(release.wait)(10)

    monkeypatch.setattr(Asked, "ask", staticmethod(hang))
    try:
        async with (
            reading(await answer("south")) as south,
            reading(await answer("north")) as north,
        ):
            await read_until(north, lambda: len(Asked.seen) >= 2)
            # Asked twice in vain, its client is sent back.
            assert [event.event for event in await south.rest()] == []
            assert ("north", "north") in Asked.seen
    finally:
        release.set()


@pytest.mark.usefixtures("in_threads", "everything_ends")
async def test_a_tenant_whose_views_hang_puts_off_no_other_tenants_question() -> None:
    release = threading.Event()
    hanging: list[None] = []

    async def hang() -> None:
        if await sync_to_async(current_of_thread)() == "south":
            hanging.append(None)
            await sync_to_async(release.wait)(60)

    Asked.ask = staticmethod(hang)
    Asked.forbidden.add("north")
    try:
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(reading(await answer("south")))
            await until(lambda: hanging)
            north = await stack.enter_async_context(reading(await answer("north")))
            assert [event.event for event in await north.rest()] == ["close"]
            # As long as the tenant's first one has not given up, nothing else of it is asked.
            assert len(hanging) == 1
    finally:
        release.set()


@pytest.mark.usefixtures("in_threads", "everything_ends")
async def test_a_database_that_fails_is_asked_again_in_the_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_sse.streaming.permission_rechecks._RETRY_SECONDS", 0.05)
    failures = [DatabaseError("It was a bad moment.")]

    async def fail() -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(Asked, "ask", staticmethod(fail))
    async with reading(await answer("north")) as north:
        await read_until(north, lambda: Asked.seen)
    assert set(Asked.seen) == {("north", "north")}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
@pytest.mark.parametrize(
    "failure", [DatabaseError("The tenant's database is away."), Panic()], ids=repr
)
async def test_logins_are_judged_in_the_tenant_of_their_streams(
    failure: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 0.05, **NAMESPACE}
    judged: list[tuple[str, set[str]]] = []
    failing = {"broken"}

    def check_logins(logins: Any) -> Any:
        name = tenancy.current()
        if name in failing:
            raise failure
        judged.append((name, {login.user for login in logins}))
        return LoginCheck(gone={login for login in logins if name == "north"})

    monkeypatch.setattr("django_sse.streaming.rechecks.check_logins", check_logins)
    client = await logged_in()
    ada = str((await user()).pk)

    async def opened(name: str) -> HttpResponseBase:
        with entered(name):
            return await client.get("/guarded/")

    async with (
        reading(await opened("broken")) as broken,
        reading(await opened("south")) as south,
        reading(await opened("north")) as north,
    ):
        # The same user and session to the letter, and only one of the tenants has it end.
        assert [event.event for event in await north.rest()] == ["close"]
        judged.clear()
        await until(lambda: ("south", {ada}) in judged)
        assert not south.ended
        assert not broken.ended


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
@pytest.mark.parametrize("how", ["logout", "save"])
async def test_a_logout_and_a_change_count_for_the_current_tenant(
    how: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "SYNC_INTERVAL": 3600, **NAMESPACE}
    client = await logged_in()
    ada = await user()

    async def opened(name: str) -> HttpResponseBase:
        with entered(name):
            return await client.get("/guarded/")

    async with (
        reading(await opened("south")) as south,
        reading(await opened("north")) as north,
    ):
        with entered("north"):
            if how == "logout":
                await client.alogout()
            else:
                ada.is_active = False
                await ada.asave()
        assert [event.event for event in await north.rest()] == ["close"]
        with entered("south"):
            await apublish("news", "going on")
        assert (await south.next_event()).data == "going on"
