"""The admin: who may see and do what, what it shows, and what it does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import AsyncClient, Client
from django.utils.html import escape
from pytest_django import Settings

from demo_project import settings as demo
from django_sse import cancel, publish
from django_sse.exceptions import GroupCancelled
from django_sse.groups.entries import GroupState
from django_sse.groups.namespaces import full_name
from django_sse.producing import produce
from django_sse.stores import get_store
from django_sse.streaming import reports
from django_sse.streaming.reports import ask_for_reports
from tests import tenancy
from tests.admin_site import other_site
from tests.live.servers import ROOT
from tests.streams import News, news, open_stream, reading
from tests.users import answer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]

GROUPS = "/admin/django_sse/eventgroup/"
MONITOR = f"{GROUPS}monitor/"
STREAM = f"{GROUPS}monitor/stream/"
ACTIONS = ("push", "cancel", "reopen", "stop", "end-user", "let-in")
HTML = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def with_admin(settings: Settings) -> None:
    settings.ROOT_URLCONF = "tests.admin_site"
    settings.MIDDLEWARE = [
        *demo.MIDDLEWARE,
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    template: dict[str, Any] = demo.TEMPLATES[0]
    processors = [
        *template["OPTIONS"]["context_processors"],
        "django.contrib.messages.context_processors.messages",
    ]
    settings.TEMPLATES = [{**template, "OPTIONS": {"context_processors": processors}}]


def a_user(*rights: str, name: str = "ada", is_staff: bool = True) -> User:
    user = User.objects.create(username=name, is_staff=is_staff)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="django_sse", codename__in=rights)
    )
    return user


def browser_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    """Somebody who may view groups, and not act."""
    return browser_of(a_user("view_eventgroup", name="viewer"))


@pytest.fixture
def admin() -> Client:
    """Somebody who may also act."""
    return browser_of(a_user("view_eventgroup", "change_eventgroup", name="admin"))


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response
    return response.content.decode()


def act(client: Client, action: str, **fields: str) -> str:
    """Fill in the form of an action, and confirm it; return the page after it."""
    response = client.post(f"{GROUPS}{action}/", {**fields, "confirmed": "yes"}, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def state(group: str) -> GroupState:
    return get_store().states([group])[group]


def logged() -> list[tuple[str, str]]:
    """What the admin's log says of what, the oldest first."""
    entries = LogEntry.objects.order_by("pk")
    return [(entry.object_repr, entry.get_change_message()) for entry in entries]


# Who may see and do what


def test_who_may_view_nothing_gets_403() -> None:
    publish("news", "hi")
    client = browser_of(a_user())
    for url in (GROUPS, f"{GROUPS}news/change/", MONITOR, *(f"{GROUPS}{a}/" for a in ACTIONS)):
        assert client.get(url).status_code == 403, url


def test_who_may_view_has_no_actions(viewer: Client) -> None:
    publish("news", "hi")
    for url in (GROUPS, f"{GROUPS}news/change/", MONITOR):
        shown = page(viewer, url)
        assert not any(f"{GROUPS}{action}/" in shown for action in ACTIONS)
    for action in ACTIONS:
        assert viewer.get(f"{GROUPS}{action}/").status_code == 403
        fields = {"group": "news", "by": "username", "user": "ada", "confirmed": "yes"}
        assert viewer.post(f"{GROUPS}{action}/", fields).status_code == 403
    assert not state("news").cancelled
    assert logged() == []


def test_who_is_not_in_the_staff_is_sent_to_the_login() -> None:
    client = browser_of(a_user("view_eventgroup", is_staff=False))
    for url in (GROUPS, MONITOR, f"{GROUPS}push/"):
        assert client.get(url).headers["Location"].startswith("/admin/login/")


def test_nothing_can_be_added_changed_or_deleted(admin: Client) -> None:
    publish("news", "hi")
    assert admin.get(f"{GROUPS}add/").status_code == 403
    assert admin.post(f"{GROUPS}news/delete/", {"post": "yes"}).status_code == 403
    admin.post(f"{GROUPS}news/change/", {"name": "other", "cancelled": "on"})
    assert not state("news").cancelled
    assert "delete_selected" not in page(admin, GROUPS)


# What it shows


def test_the_list_shows_groups_and_finds_them(viewer: Client) -> None:
    for number in range(3):
        publish("news", number)
    publish("sport", "hi")
    cancel("sport")
    shown = page(viewer, GROUPS)
    assert f"{GROUPS}news/change/" in shown
    assert f"{GROUPS}sport/change/" in shown
    assert '<td class="field-kept">3</td>' in shown
    assert '<span data-streams-of="news">' in shown
    assert "sport" not in page(viewer, f"{GROUPS}?q=ews")
    assert f"{GROUPS}news/change/" not in page(viewer, f"{GROUPS}?cancelled__exact=1")


def test_a_list_of_many_groups_takes_as_many_queries_as_one_of_few(
    viewer: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        publish(f"news-{number}", "hi")
    with django_assert_max_num_queries(12):
        page(viewer, GROUPS)


def test_groups_of_owners_and_of_the_library_are_hidden(viewer: Client) -> None:
    publish("news", "hi")
    user = a_user(name="bob")
    cancel(user=user)
    async_to_sync(ask_for_reports)(get_store())
    shown = page(viewer, GROUPS)
    assert "1 event group" in shown
    assert viewer.get(f"{GROUPS}_7Ereports/change/").status_code == 302


def test_a_page_of_a_group_shows_its_events_the_newest_first(viewer: Client) -> None:
    for number in range(30):
        publish("news", {"number": number}, event="headline")
    shown = page(viewer, f"{GROUPS}news/change/")
    newest, older = (escape(json.dumps({"number": n}, separators=(",", ":"))) for n in (29, 28))
    assert shown.index(newest) < shown.index(older)
    assert "headline" in shown
    assert escape('{"number":4}') not in shown
    assert escape('{"number":4}') in page(viewer, f"{GROUPS}news/change/?p=2")


def test_the_id_of_an_event_is_the_one_that_clients_get(viewer: Client) -> None:
    published = publish("news", "hi")
    assert f"<code>{published.id}</code>" in page(viewer, f"{GROUPS}news/change/")


def test_long_data_are_cut(viewer: Client) -> None:
    publish("news", "x" * 100_000)
    shown = page(viewer, f"{GROUPS}news/change/")
    assert "98000 more characters" in shown
    assert len(shown) < 50_000


def test_what_is_shown_is_text_and_no_html(admin: Client) -> None:
    publish("news", HTML, event=HTML)
    User.objects.create(username=HTML)
    shown = [
        page(admin, f"{GROUPS}news/change/"),
        page(admin, f"{GROUPS}push/?group={HTML}"),
        page(admin, f"{GROUPS}?q={HTML}"),
        act(admin, "push", group=HTML),
        act(admin, "end-user", by="username", user=HTML, reason=HTML),
        act(admin, "cancel", group="news", reason=HTML),
        page(admin, f"{GROUPS}news/history/"),
        admin.post(
            f"{GROUPS}end-user/", {"by": "username", "user": HTML, "reason": HTML}
        ).content.decode(),
    ]
    for text in shown:
        assert HTML not in text
        assert escape(HTML) in text


def test_the_tables_may_be_on_another_database(viewer: Client, settings: Settings) -> None:
    publish("news", "hi")
    store = get_store()
    assert store.using == "default"
    asked: list[str] = []
    # The rows are asked for by the alias of the store, whatever a router says.
    settings.DATABASE_ROUTERS = [_Elsewhere(asked)]
    assert f"{GROUPS}news/change/" in page(viewer, GROUPS)
    assert "EventGroup" not in asked


class _Elsewhere:
    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def db_for_read(self, model: Any, **hints: Any) -> None:
        self._asked.append(model.__name__)


def test_a_store_that_cannot_list_groups_leaves_actions_by_name(
    admin: Client, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    publish("news", "hi")
    shown = page(admin, GROUPS)
    assert "cannot list its groups" in shown
    assert all(f"{GROUPS}{action}/" in shown for action in ACTIONS)
    assert "Cancelled news" in act(admin, "cancel", group="news")
    assert state("news").cancelled


def test_any_name_of_a_group_leads_to_its_page(admin: Client) -> None:
    assert "<pre>hi</pre>" in act(admin, "push", group="job_7E.-", text="hi")
    [url] = re.findall(rf'href="({GROUPS}[^"]*/change/)[^"]*"', page(admin, GROUPS))
    shown = page(admin, url)
    assert "<pre>hi</pre>" in shown
    [history] = re.findall(rf'href="({GROUPS}[^"]*/history/)"', shown)
    assert "Pushed an event to job_7E.-" in page(admin, history)


def test_a_group_that_is_named_like_a_user_is_another_thing(admin: Client) -> None:
    bob = User.objects.create(username="bob")
    publish(str(bob.pk), "of the group")
    assert "of the group" not in act(admin, "let-in", by="pk", user=str(bob.pk))


# Tenants


@pytest.fixture
def of_a(settings: Settings) -> Iterator[None]:
    """All that happens is in the tenant ``a``, after something has happened in another one."""
    settings.DJANGO_SSE = tenancy.NAMESPACE
    with tenancy.entered("A"):
        publish("secret", "hi")
    with tenancy.entered("a"):
        publish("news", "hi")
        yield


@pytest.mark.usefixtures("of_a")
def test_a_tenant_sees_its_own_groups_alone(admin: Client) -> None:
    shown = page(admin, GROUPS)
    assert ">news</a>" in shown
    assert "secret" not in shown
    assert admin.get(f"{GROUPS}A_2Fsecret/change/").status_code == 302
    assert "hi" in page(admin, f"{GROUPS}a_2Fnews/change/")


@pytest.mark.usefixtures("of_a")
def test_a_tenant_acts_on_its_own_groups_alone(admin: Client) -> None:
    act(admin, "cancel", group="secret")
    assert state(full_name("a", "secret")).cancelled
    assert not state(full_name("A", "secret")).cancelled


@pytest.mark.usefixtures("of_a")
def test_the_monitor_is_not_for_tenants(admin: Client) -> None:
    assert admin.get(MONITOR).status_code == 403
    assert MONITOR not in page(admin, GROUPS)


# What it does


def test_an_event_is_pushed(admin: Client) -> None:
    shown = act(admin, "push", group="news", type="headline", text="first\r\nsecond")
    assert "headline" in shown
    assert "first\nsecond" in shown
    [(name, message)] = logged()
    assert name == "news"
    assert message.startswith("Pushed an event to news: ")


@pytest.mark.parametrize(
    ("given", "sent"), [('{"a": "é"}', '{"a": "é"}'), ('"text"', '"text"'), ("1", "1")]
)
def test_json_is_pushed_as_json(admin: Client, given: str, sent: str) -> None:
    assert escape(sent) in act(admin, "push", group="news", text=given, is_json="on")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"group": "no group"}, "is not a group name"),
        ({"group": "news", "text": "{", "is_json": "on"}, "This is not JSON"),
        ({"group": "news", "text": "NaN", "is_json": "on"}, "This is not JSON"),
        ({"group": "news", "type": "close"}, "is not a name for an event"),
        ({"group": "news", "text": "x" * 300_000}, "MAX_EVENT_BYTES"),
        ({"group": "over"}, "cancelled"),
    ],
)
def test_what_cannot_be_pushed_is_said(admin: Client, fields: dict[str, str], problem: str) -> None:
    cancel("over")
    assert problem in act(admin, "push", **fields)
    assert logged() == []


def test_a_group_is_cancelled_once_that_is_confirmed(admin: Client) -> None:
    publish("news", "hi")
    asked = admin.post(f"{GROUPS}cancel/", {"group": "news", "reason": "sold out"})
    assert "All streams of the group end" in asked.content.decode()
    assert not state("news").cancelled
    assert "Cancelled news: sold out." in act(admin, "cancel", group="news", reason="sold out")
    assert state("news").cancelled
    assert "sold out" in page(admin, f"{GROUPS}news/change/")
    assert logged() == [("news", "Cancelled news: sold out.")]


def test_a_group_is_reopened(admin: Client) -> None:
    cancel("news")
    assert "Reopened news." in act(admin, "reopen", group="news")
    assert not state("news").cancelled
    assert logged() == [("news", "Reopened news.")]


def test_a_producer_is_stopped(admin: Client) -> None:
    with produce("answer") as producer:
        producer.publish("one")
        assert '<td class="field-is_produced">yes</td>' in page(admin, GROUPS)
        assert f"{GROUPS}stop/?group=answer" in page(admin, f"{GROUPS}answer/change/")
        act(admin, "stop", group="answer", reason="stopped")
        with pytest.raises(GroupCancelled):
            publish("answer", "two")
        assert state("answer").cancelled
    assert "stopped" in page(admin, f"{GROUPS}answer/change/")
    assert logged() == [("answer", "Cancelled answer: stopped.")]


class Mine(News):
    """Streams to a user whose key is in the URL."""

    async def get_owner(self) -> Any:
        return await User.objects.aget(pk=self.kwargs["pk"])


async def in_thread(function: Any, *arguments: Any, **named: Any) -> Any:
    return await sync_to_async(function)(*arguments, **named)


@pytest.mark.parametrize("by", ["username", "pk"])
async def test_the_streams_of_a_user_end_and_the_user_may_be_let_in_again(
    admin: Client, by: str
) -> None:
    bob = await User.objects.acreate(username="bob")
    view = Mine.as_view()
    user = bob.username if by == "username" else str(bob.pk)
    async with open_stream(view, pk=bob.pk) as his, open_stream(news) as anothers:
        asked = await in_thread(admin.post, f"{GROUPS}end-user/", {"by": by, "user": user})
        assert f"bob ({bob.pk})" in asked.content.decode()
        shown = await in_thread(act, admin, "end-user", by=by, user=user, reason="kicked")
        assert "Ended the streams of bob: kicked." in shown
        [close] = await his.rest()
        assert (close.event, close.json()) == ("close", {"reason": "kicked"})
        assert not anothers.ended
    shown = await in_thread(act, admin, "let-in", by=by, user=user)
    assert "Let bob in again." in shown
    async with open_stream(view, pk=bob.pk) as again:
        assert not again.ended
    assert await in_thread(logged) == [
        ("bob", "Ended the streams of bob: kicked."),
        ("bob", "Let bob in again."),
    ]


@pytest.mark.parametrize(("by", "user"), [("username", "nobody"), ("pk", "9999"), ("pk", "x")])
def test_a_user_who_does_not_exist_is_an_error(admin: Client, by: str, user: str) -> None:
    assert "There is no such user." in act(admin, "end-user", by=by, user=user)
    assert logged() == []


# The monitor


@pytest.mark.parametrize("site", ["admin", "other"])
async def test_the_monitor_streams_the_reports_of_processes(site: str) -> None:
    client = await _logged_in("view_eventgroup")
    shown = await client.get(MONITOR.replace("admin", site, 1))
    url = STREAM.replace("admin", site, 1)
    assert f'data-stream="{url}"' in shown.content.decode()
    async with open_stream(news), reading(await answer(client, url=url)) as reader:
        report = await reader.next_event()
        assert report.event == "report"
        assert report.json()["groups"] == {"news": 1}
        # And again and again.
        await reader.next_event()


async def _logged_in(*rights: str, **more: Any) -> AsyncClient:
    client = AsyncClient()
    await client.aforce_login(await in_thread(a_user, *rights, **more))
    return client


async def test_the_stream_is_for_those_alone_who_may_see_the_monitor(settings: Settings) -> None:
    assert (await answer(AsyncClient(), url=STREAM)).status_code == 401
    for number, (rights, is_staff) in enumerate([((), True), (("view_eventgroup",), False)]):
        client = await _logged_in(*rights, name=f"user-{number}", is_staff=is_staff)
        assert (await answer(client, url=STREAM)).status_code == 403


async def test_the_stream_is_not_for_tenants(settings: Settings) -> None:
    client = await _logged_in("view_eventgroup")
    settings.DJANGO_SSE = tenancy.NAMESPACE
    with tenancy.entered("a"):
        assert (await answer(client, url=STREAM)).status_code == 403


async def test_the_stream_is_not_for_pages_of_other_origins(settings: Settings) -> None:
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": ["https://other"], "ALLOW_CREDENTIALS": True}
    client = await _logged_in("view_eventgroup")
    response = await client.get(STREAM, headers={"Origin": "https://other"})
    assert response.status_code == 403


async def test_the_stream_ends_with_the_right_to_see_it(settings: Settings) -> None:
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1}
    client = await _logged_in("view_eventgroup")
    async with reading(await answer(client, url=STREAM)) as reader:
        await reader.next_event()
        await in_thread(_take_rights_away, "ada")
        await reader.rest()
    assert (await answer(client, url=STREAM)).status_code == 403


def _take_rights_away(name: str) -> None:
    User.objects.get(username=name).user_permissions.clear()


async def test_a_kick_ends_the_stream() -> None:
    client = await _logged_in("view_eventgroup")
    async with reading(await answer(client, url=STREAM)) as reader:
        await reader.next_event()
        await in_thread(cancel, user=await User.objects.aget(username="ada"), reason="kicked")
        assert (await reader.rest())[-1].event == "close"


async def test_a_logout_ends_the_stream() -> None:
    client = await _logged_in("view_eventgroup")
    async with reading(await answer(client, url=STREAM)) as reader:
        await reader.next_event()
        await client.get("/logout/")
        await reader.rest()


async def test_the_site_has_its_say_about_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    client = await _logged_in("view_eventgroup")
    url = STREAM.replace("admin", "other", 1)
    monkeypatch.setattr(other_site, "has_permission", lambda request: False)
    assert (await answer(client, url=url)).status_code == 403
    assert (await answer(client, url=STREAM)).status_code == 200


async def test_processes_report_as_long_as_somebody_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever has asked once is forgotten at once.
    monkeypatch.setattr(reports, "_WATCHED_SECONDS", 0)
    monkeypatch.setattr(reports, "REPORT_SECONDS", 0.02)
    client = await _logged_in("view_eventgroup")
    async with reading(await answer(client, url=STREAM)) as reader:
        for _ in range(5):
            await reader.next_event()


async def test_over_wsgi_the_monitor_shows_what_is_now(viewer: Client) -> None:
    async with open_stream(news):
        shown = await in_thread(page, viewer, MONITOR)
    assert "served over WSGI" in shown
    assert "sse-charts" not in shown
    assert f":{os.getpid()}</th>" in shown


# Without the admin


def test_a_project_without_the_admin_does_not_import_it() -> None:
    program = (
        "import django, sys; django.setup(); import django_sse.views, django_sse.decorators; "
        "from django.core.management import call_command; call_command('check'); "
        "assert 'django_sse.admin' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "demo_project.settings"},
        check=True,
    )
