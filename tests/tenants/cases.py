"""Two tenants with the same groups, users and session keys: ``tests.groups.test_tenants``."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django_tenants.utils import schema_context
from pytest_django import DjangoDbBlocker

from django_sse import cancel, position, publish, reopen
from django_sse.access.logins import LoginCheck, check_logins
from django_sse.asgi import get_asgi_application
from django_sse.event import Event
from django_sse.streaming.rechecks import Rechecks
from tests.http.test_asgi import Request
from tests.streams import until
from tests.tenants.models import Domain, Estate
from tests.tenants.urls import Members

TENANTS = ("north", "south")


@pytest.fixture(scope="session", autouse=True)
def tenants(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Two tenants, each with a user of its own, whose key is the same."""
    with django_db_blocker.unblock():
        call_command("migrate_schemas", schema_name="public", run_syncdb=True, verbosity=0)
        for name in ("public", *TENANTS):
            estate = Estate(schema_name=name, name=name)
            estate.save(verbosity=0)
            Domain.objects.create(domain=f"{name}.test", tenant=estate, is_primary=True)
        yield


@pytest.fixture(autouse=True)
def as_at_first(tenants: None) -> None:
    for name in TENANTS:
        with schema_context(name):
            reopen("news")
            User.objects.all().delete()
            ada = User.objects.create_user("ada", password=f"of the {name}", pk=7)
            ada.groups.add(Group.objects.get_or_create(name="members")[0])


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins are checked as often as the store is asked, whatever that costs."""
    monkeypatch.setattr("django_sse.streaming.rechecks._PAUSE_FACTOR", 0)


pytestmark = pytest.mark.usefixtures("everything_ends")


async def in_tenant(name: str, do: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Do what a view, or a task of a tenant would, in a thread."""

    def inside() -> Any:
        with schema_context(name):
            return do(*arguments, **options)

    return await sync_to_async(inside)()


class Browser:
    """A browser at one of the tenants."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.cookies: SimpleCookie = SimpleCookie()
        self._application = get_asgi_application()

    async def get(self, url: str, last_event_id: str = "", **query: str) -> Request:
        """Ask for a URL; returns the request once it has its first answer."""
        headers = {
            "host": f"{self.tenant}.test",
            "cookie": self.cookies.output(attrs=[], header="", sep=";").strip(),
            "last-event-id": last_event_id,
        }
        request = Request(
            self._application,
            url,
            query_string=urlencode(query).encode(),
            headers=[(name.encode(), value.encode()) for name, value in headers.items() if value],
        )
        await request.start()
        self.cookies.load(request.headers.get("set-cookie", ""))
        return request

    async def done(self, url: str, **query: str) -> None:
        """Ask for a page."""
        request = await self.get(url, **query)
        await request.rest()
        assert request.status == 200

    @asynccontextmanager
    async def stream(self, url: str = "/news/", last_event_id: str = "") -> AsyncIterator[Request]:
        """Open a stream, of which the first bytes have come."""
        request = await self.get(url, last_event_id)
        assert request.status == 200
        while not request.decoder.reconnection_time:
            await request.read()
        try:
            yield request
        finally:
            if not request.ended:
                await request.disconnect()


async def logged_in(tenant: str) -> Browser:
    browser = Browser(tenant)
    await browser.done("/log-in/", password=f"of the {tenant}")
    return browser


async def data(request: Request) -> list[str]:
    return [event.data for event in await request.next_events()]


async def goes_on(request: Request, tenant: str) -> None:
    await in_tenant(tenant, publish, "news", "going on")
    assert await data(request) == ["going on"]


def closes(events: list[Event]) -> str:
    """Return the reason of the ``close`` that is the last event."""
    assert events[-1].event == "close"
    return str(events[-1].json()["reason"])


async def swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for two whole sweeps over logins and sessions."""
    finished: list[None] = []
    look_for_sessions = Rechecks._look_for_sessions

    async def look_and_note(rechecks: Rechecks, streams: Any) -> None:
        await look_for_sessions(rechecks, streams)
        finished.append(None)

    with monkeypatch.context() as patch:
        patch.setattr(Rechecks, "_look_for_sessions", look_and_note)
        await until(lambda: len(finished) >= 3)


async def test_each_tenant_gets_its_own_events() -> None:
    async with Browser("north").stream() as north, Browser("south").stream() as south:
        for name in TENANTS:
            published = await in_tenant(name, publish, "news", f"of the {name}")
            assert published.group == "news"
        assert await data(north) == ["of the north"]
        assert await data(south) == ["of the south"]
        assert north.decoder.last_event_id == await in_tenant("north", position, "news")
        await in_tenant("public", publish, "news", "of nobody")
        for url in ("/say/", "/say-at-commit/"):
            await Browser("north").done(url, text="of a view of the north")
            assert await data(north) == ["of a view of the north"]
        await goes_on(south, "south")


async def test_a_cancel_ends_the_streams_of_one_tenant() -> None:
    async with Browser("north").stream() as north, Browser("south").stream() as south:
        await in_tenant("north", cancel, "news", reason="sold out")
        assert closes(await north.rest()) == "sold out"
        stopped = await Browser("north").get("/news/")
        assert (await stopped.rest(), stopped.status) == ([], 204)
        await goes_on(south, "south")
        await in_tenant("north", reopen, "news")
        async with Browser("north").stream() as back:
            await goes_on(back, "north")


async def test_a_position_of_the_other_tenant_is_a_reset() -> None:
    positions = {name: await in_tenant(name, position, "news") for name in TENANTS}
    for name in TENANTS:
        await in_tenant(name, publish, "news", f"missed in the {name}")
    async with Browser("north").stream(last_event_id=positions["north"]) as back:
        assert await data(back) == ["missed in the north"]
    request = await Browser("north").get("/news/", positions["south"])
    [reset] = await request.next_events()
    assert reset.event == "reset"
    await goes_on(request, "north")
    await request.disconnect()


async def test_logins_live_and_end_with_those_of_their_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada, other = await logged_in("north"), await logged_in("south")
    async with ada.stream() as north, other.stream() as south:
        await swept(monkeypatch)
        await goes_on(north, "north")
        await goes_on(south, "south")
        await ada.done("/log-out/")
        assert closes(await north.rest()) == "logged out"
        await swept(monkeypatch)
        await goes_on(south, "south")


@pytest.mark.parametrize("how", ["deactivated", "deleted", "kicked", "kicked out of the group"])
async def test_a_user_loses_the_streams_of_one_tenant(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, other = await logged_in("north"), await logged_in("south")
    users = User.objects.filter(pk=7)
    async with ada.stream() as north, other.stream() as south:
        match how:
            case "deactivated":
                await in_tenant("north", users.update, is_active=False)
            case "deleted":
                await in_tenant("north", lambda: users.delete())
            case "kicked":
                await in_tenant("north", cancel, user=7, reason="kicked")
            case _:
                await in_tenant("north", cancel, "news", user=7, reason="kicked")
        assert closes(await north.rest()) == ("kicked" if "kicked" in how else "logged out")
        await swept(monkeypatch)
        await goes_on(south, "south")


async def test_a_session_that_is_gone_ends_the_streams_of_one_tenant() -> None:
    ada, other = await logged_in("north"), await logged_in("south")
    async with ada.stream() as north, other.stream() as south:
        await in_tenant("north", lambda: Session.objects.all().delete())
        assert await north.rest() == []
        await goes_on(south, "south")


async def test_still_allowed_asks_the_tables_of_its_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada, other = await logged_in("north"), await logged_in("south")
    asked: list[None] = []
    still_allowed = Members.still_allowed

    async def ask_and_note(view: Members) -> bool:
        answer = await still_allowed(view)
        asked.append(None)
        return answer

    monkeypatch.setattr(Members, "still_allowed", ask_and_note)
    async with ada.stream("/members/") as north, other.stream("/members/") as south:
        await until(lambda: len(asked) >= 2)
        await goes_on(north, "north")
        await in_tenant("north", lambda: User.objects.get(pk=7).groups.clear())
        assert closes(await north.rest()) == "not allowed any more"
        before = len(asked)
        await until(lambda: len(asked) > before)
        await goes_on(south, "south")


async def test_commands_of_a_tenant_are_about_its_groups() -> None:
    async def command(name: str, *arguments: str) -> None:
        # It reads the command line itself.
        line = ["manage.py", "tenant_command", name, "--schema=north", *arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, *line)
        assert await process.wait() == 0

    async with Browser("north").stream() as north, Browser("south").stream() as south:
        await command("sse_push", "news", "by a command")
        assert await data(north) == ["by a command"]
        await command("sse_cancel", "news")
        assert (await north.rest())[-1].event == "close"
        await goes_on(south, "south")


async def test_a_tenant_whose_users_cannot_be_read_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(logins: Any) -> LoginCheck:
        if connection.schema_name == "north":  # type: ignore[attr-defined]
            raise RuntimeError("Its schema is gone.")
        return check_logins(logins)

    monkeypatch.setattr("django_sse.streaming.rechecks.check_logins", failing)
    ada, other = await logged_in("north"), await logged_in("south")
    async with ada.stream() as north, other.stream() as south:
        await in_tenant("south", User.objects.filter(pk=7).update, is_active=False)
        assert closes(await south.rest()) == "logged out"
        await goes_on(north, "north")


async def test_many_at_once_stay_in_their_tenants() -> None:
    async with asyncio.timeout(60):
        async with Browser("north").stream() as north, Browser("south").stream() as south:
            await asyncio.gather(
                *(
                    Browser(name).done(url, text=f"of the {name}")
                    for _ in range(20)
                    for name in TENANTS
                    for url in ("/say/", "/say-at-commit/")
                )
            )
            for name, stream in (("north", north), ("south", south)):
                got: list[str] = []
                while len(got) < 40:
                    got += await data(stream)
                assert got == [f"of the {name}"] * 40
