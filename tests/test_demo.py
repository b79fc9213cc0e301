import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils.html import escape

from demo_project.answers import ANSWERS
from demo_project.ideas import IDEAS, Idea
from demo_project.management.commands.sample_metrics import Command, sample
from demo_project.markov import write
from demo_project.sources import highlight
from demo_project.views import push_command
from django_sse import Event, GroupCancelled, acancel, apublish, cancel, publish, reopen
from django_sse.event import Decoder
from django_sse.models import StoredEvent
from tests.streams import reading

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo_project.urls"),
    pytest.mark.usefixtures("everything_ends"),
]

HEADLINE = {"title": "hi"}


def stored(group: str) -> list[Event]:
    decoder = Decoder()
    rows = StoredEvent.objects.filter(group=group, closes=False).order_by("number")
    return [event for row in rows for event in decoder.feed(bytes(row.wire))]


# The pages


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("index", ["/events/news/latest/"]),
        ("metrics", ["/events/metrics/latest/"]),
        ("headlines", ["/events/news/latest/"]),
        ("job", ["/progress/"]),
        ("chat", ["/chat/lobby/events/"]),
        ("text", ["/text/sse/events/"]),
        ("lasting-answer", ["/lasting-answer/"]),
        ("long-job", ["/long-job/start/"]),
        ("last-word", ["/events/news/"]),
        ("tabs", ["/tabs/count/", "/tabs/tab/"]),
        ("tab", ["/tabs/events/"]),
    ],
)
def test_a_page_names_its_streams(client: Client, name: str, streams: list[str]) -> None:
    page = client.get(reverse(name)).content.decode()
    for url in streams:
        assert re.search(f'(?:data-url|src|action)="{url}"', page), url


@pytest.mark.parametrize("name", ["index", "headlines"])
def test_a_page_says_what_to_type(client: Client, name: str) -> None:
    assert escape(push_command()) in client.get(reverse(name)).content.decode()


def test_the_front_page_and_each_page_lead_to_all_of_them(client: Client) -> None:
    for url in ["/", *(reverse(idea.name) for idea in IDEAS)]:
        page = client.get(url).content.decode()
        for idea in IDEAS:
            assert f'<a href="{reverse(idea.name)}"' in page


@pytest.mark.parametrize("name", ["index", "tab", *(idea.name for idea in IDEAS)])
def test_a_page_brings_its_own_style_and_scripts(client: Client, name: str) -> None:
    page = client.get(reverse(name)).content.decode()
    # What it shows of its source loads nothing.
    page = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:href|src)="([^"]*)"', page)
    assert len(loaded) >= 3
    for path in loaded:
        if path.startswith("/static/"):
            assert finders.find(path.removeprefix("/static/")), path
        else:
            assert path == reverse("tab")


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.name)
def test_a_page_shows_its_source(client: Client, idea: Idea) -> None:
    response = client.get(reverse(idea.name))
    assert response.status_code == 200
    shown = {
        path: unescape(re.sub("<[^>]*>", "", code))
        for path, code in re.findall(
            r'<pre[^>]* aria-label="(.*?)"><code>(.*?)</code></pre>',
            response.content.decode(),
            re.DOTALL,
        )
    }
    for path, code in shown.items():
        assert code == (settings.BASE_DIR / path).read_text().rstrip("\n")
    # The view, the template, and the page's own scripts are among it.
    view = sys.modules[response.resolver_match.func.__module__]
    assert inspect.getsource(view).rstrip("\n") in shown.values()
    assert f"demo_project/templates/{response.templates[0].name}" in shown
    page = re.sub(r"<pre.*?</pre>", "", response.content.decode(), flags=re.DOTALL)
    for script in re.findall(r'<script[^>]* src="/static/(demo_project/[^"]*)"', page):
        assert script == "demo_project/forms.js" or f"demo_project/static/{script}" in shown


def test_source_is_escaped() -> None:
    assert highlight('x = "<b>"  # <i>', ".py") == (
        'x = <span class="string">&quot;&lt;b&gt;&quot;</span>  '
        '<span class="comment"># &lt;i&gt;</span>'
    )


def test_the_push_command_is_for_the_projects_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_DATABASE", raising=False)
    monkeypatch.setattr(sys, "executable", str(settings.BASE_DIR / ".venv/bin/python"))
    assert push_command() == (
        """.venv/bin/python manage.py sse_push news '{"title": "hi"}' --event headline"""
    )


def test_the_push_command_names_the_servers_interpreter_and_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEMO_DATABASE", "/elsewhere/a demo.sqlite3")
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    words = shlex.split(push_command())
    assert words[:3] == [
        "DEMO_DATABASE=/elsewhere/a demo.sqlite3",
        "/elsewhere/python",
        "manage.py",
    ]


def test_the_push_command_publishes_a_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_DATABASE", raising=False)
    _, _, command, *arguments = shlex.split(push_command())
    call_command(command, *arguments, stdout=StringIO())
    [event] = stored("news")
    assert (event.event, event.json()) == ("headline", HEADLINE)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]", "other.localhost"])
def test_this_machine_is_served_by_each_of_its_names(client: Client, host: str) -> None:
    assert client.get(reverse("index"), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["rebound.example:8000", "localhost.example", "192.0.2.1"])
@pytest.mark.parametrize("name", ["index", "headlines-events"])
def test_another_name_that_leads_to_this_machine_is_refused(
    client: Client, name: str, host: str
) -> None:
    assert client.get(reverse(name), headers={"Host": host}).status_code == 400


# The streams


async def test_a_group_is_streamed(async_client: AsyncClient) -> None:
    async with reading(await async_client.get("/events/news/")) as reader:
        await apublish("news", HEADLINE, event="headline")
        event = await reader.next_event()
    assert (event.event, event.json()) == ("headline", HEADLINE)
    assert reader.response["Content-Type"].startswith("text/event-stream")


async def test_several_groups_are_streamed_as_one(async_client: AsyncClient) -> None:
    async with reading(await async_client.get("/events/?group=a&group=b")) as reader:
        for group in ("a", "b"):
            await apublish(group, f"for {group}")
        texts = {(await reader.next_event()).text for _ in range(2)}
    assert texts == {"for a", "for b"}


@pytest.mark.parametrize(
    ("url", "status"), [("/events/no%20group/", 404), ("/events/?group=", 404), ("/events/", 403)]
)
async def test_what_is_no_group_is_refused(
    async_client: AsyncClient, url: str, status: int
) -> None:
    assert (await async_client.get(url)).status_code == status


async def test_no_other_stream_has_what_the_members_are_told(async_client: AsyncClient) -> None:
    for url in ("/events/members/", "/events/?group=members"):
        assert (await async_client.get(url)).status_code == 403
    async with reading(await async_client.get("/events/?group=members&group=news")) as reader:
        await apublish("members", "for members")
        await apublish("news", "for all")
        assert (await reader.next_event()).text == "for all"


async def test_a_new_page_shows_the_newest_headlines_of_before(async_client: AsyncClient) -> None:
    for number in range(7):
        await apublish("news", {"title": number}, event="headline")
    async with reading(await async_client.get(reverse("headlines-events"))) as reader:
        texts = [(await reader.next_event()).text for _ in range(5)]
    assert texts == [f"<li>{number}</li>" for number in (2, 3, 4, 5, 6)]


@pytest.mark.parametrize(
    ("data", "html"),
    [
        ({"title": "<b>hi</b>"}, "<li>&lt;b&gt;hi&lt;/b&gt;</li>"),
        ("<script>", "<li>&lt;script&gt;</li>"),
        ({"other": 1}, "<li>{&quot;other&quot;:1}</li>"),
        (None, "<li>null</li>"),
    ],
)
async def test_whatever_is_published_is_a_headline_without_html(
    async_client: AsyncClient, data: object, html: str
) -> None:
    async with reading(await async_client.get(reverse("headlines-events"))) as reader:
        await apublish("news", data, event="headline")
        event = await reader.next_event()
    assert (event.event, event.text) == ("headline", html)


def test_the_page_publishes_a_headline(client: Client) -> None:
    assert client.post(reverse("publish-news"), HEADLINE).status_code == 204
    [event] = stored("news")
    assert (event.event, event.json()) == ("headline", HEADLINE)


def test_no_headline_and_a_cancelled_group_are_refused_with_the_reason(client: Client) -> None:
    refused = client.post(reverse("publish-news"), {"title": ""})
    assert (refused.status_code, refused.content.decode()) == (
        400,
        "* title\n  * This field is required.",
    )
    cancel("news")
    refused = client.post(reverse("publish-news"), HEADLINE)
    assert refused.status_code == 409
    assert "is cancelled" in refused.content.decode()


# The job


async def test_the_job_runs_to_its_end_and_not_again(async_client: AsyncClient) -> None:
    url = "/progress/?steps=3&delay=0"
    async with reading(await async_client.get(url)) as reader:
        *steps, close = await reader.rest()
    assert [event.json()["step"] for event in steps] == [1, 2, 3]
    assert {event.event for event in steps} == {"progress"}
    assert close.event == "close"
    again = await async_client.get(url, headers={"Last-Event-ID": reader.last_event_id})
    assert again.status_code == 204


async def test_the_job_has_defaults(async_client: AsyncClient) -> None:
    async with reading(await async_client.get("/progress/?delay=0")) as reader:
        *_, last, _ = await reader.rest()
    assert last.json() == {"step": 5, "steps": 5}


@pytest.mark.parametrize(
    "query",
    [
        "steps=many",
        "steps=",
        "steps=0",
        "steps=-1",
        "steps=1001",
        "steps=1.5",
        f"steps={'9' * 5000}",
        "delay=soon",
        "delay=-1",
        "delay=61",
        "delay=nan",
        "delay=inf",
    ],
)
async def test_a_job_that_cannot_be_is_refused(async_client: AsyncClient, query: str) -> None:
    response = await async_client.get(f"/progress/?{query}")
    assert response.status_code == 400
    assert list(response.json()) == [query.partition("=")[0]]


# Cancelling


async def test_cancel_ends_the_stream_and_stops_its_client(async_client: AsyncClient) -> None:
    async with reading(await async_client.get(reverse("headlines-events"))) as reader:
        assert (await async_client.post(reverse("cancel-news"))).status_code == 204
        [close] = await reader.rest()
    assert close.event == "close"
    assert close.json() == {"reason": "cancelled on the page"}
    again = await async_client.get(
        reverse("headlines-events"), headers={"Last-Event-ID": reader.last_event_id}
    )
    assert again.status_code == 204


async def test_a_cancelled_group_still_shows_a_new_page_its_headlines(
    async_client: AsyncClient,
) -> None:
    await apublish("news", HEADLINE, event="headline")
    await acancel("news")
    async with reading(await async_client.get(reverse("headlines-events"))) as reader:
        events = await reader.rest()
    assert [event.event for event in events] == ["headline", "close"]


def test_reopen_lets_the_group_go_on(client: Client) -> None:
    client.post(reverse("cancel-news"))
    with pytest.raises(GroupCancelled):
        publish("news", HEADLINE)
    assert client.post(reverse("reopen-news")).status_code == 204
    publish("news", HEADLINE)


@pytest.mark.parametrize("name", ["cancel-news", "reopen-news", "publish-numbers"])
def test_the_buttons_only_work_from_the_page(name: str) -> None:
    browser = Client(enforce_csrf_checks=True)
    assert browser.get(reverse(name)).status_code == 405
    assert browser.post(reverse(name)).status_code == 403
    browser.get(reverse("last-word"))
    token = browser.cookies["csrftoken"].value
    assert browser.post(reverse(name), {"csrfmiddlewaretoken": token}).status_code == 204


# Users


async def test_who_is_kicked_is_out_until_the_next_login(async_client: AsyncClient) -> None:
    members = reverse("members")
    assert (await async_client.get(members)).status_code == 401
    await async_client.post(reverse("login"), {"user": "ada"})
    async with reading(await async_client.get(members)) as reader:
        await AsyncClient().post(reverse("kick"), {"user": "ada"})
        close = (await reader.rest())[-1]
    assert (close.event, close.json()) == ("close", {"reason": "kicked"})
    assert (await async_client.get(members)).status_code == 204
    await async_client.post(reverse("login"), {"user": "ada"})
    async with reading(await async_client.get(members)):
        pass


async def test_who_is_not_kicked_stays_and_is_told(async_client: AsyncClient) -> None:
    await AsyncClient().post(reverse("login"), {"user": "ada"})
    await async_client.post(reverse("login"), {"user": "grace"})
    async with reading(await async_client.get(reverse("members"))) as reader:
        await AsyncClient().post(reverse("kick"), {"user": "ada"})
        assert (await reader.next_event()).text == "<li>Ada was kicked</li>"


def test_only_the_demos_users_log_in_and_are_kicked(client: Client) -> None:
    client.post(reverse("login"), {"user": "root"})
    assert not User.objects.exists()
    assert client.post(reverse("kick"), {"user": "root"}).status_code == 404


def test_a_user_may_log_out(client: Client) -> None:
    client.post(reverse("login"), {"user": "ada"})
    assert f'formaction="{reverse("logout")}"' in client.get(reverse("last-word")).content.decode()
    client.post(reverse("logout"))
    assert client.get(reverse("members")).status_code == 401


# Chat


def test_a_message_goes_to_its_room_as_html_without_html_of_its_own(client: Client) -> None:
    room = reverse("room", args=["kitchen"])
    assert client.post(room, {"name": "<i>Ada"}).headers["Location"] == room
    assert client.post(reverse("say", args=["kitchen"]), {"text": "<b>hi"}).status_code == 204
    [event] = stored("chat-kitchen")
    mark = client.session["chatter"]["mark"]
    assert event.text == f'<li data-by="{mark}"><b>&lt;i&gt;Ada</b> &lt;b&gt;hi</li>\n'
    assert not stored("chat-lobby")


def test_another_name_is_still_the_same_chatter(client: Client) -> None:
    room = reverse("chat")
    client.post(room, {"name": "Ada"})
    mark = client.session["chatter"]["mark"]
    client.post(room, {"name": "Countess"})
    assert client.session["chatter"] == {"mark": mark, "name": "Countess"}


def test_what_cannot_be_said_is_refused(client: Client) -> None:
    say = reverse("say", args=["lobby"])
    assert client.post(say, {"text": "hi"}).status_code == 403
    assert "This field is required." in client.post(reverse("chat"), {"name": ""}).content.decode()
    client.post(reverse("chat"), {"name": "Ada"})
    assert client.post(say, {"text": ""}).status_code == 400
    for name in ("room", "say"):
        assert client.post(reverse(name, args=["cellar"]), {"text": "hi"}).status_code == 404


# Text


async def test_a_text_comes_word_by_word_and_ends(
    async_client: AsyncClient, no_waiting: None
) -> None:
    async with reading(await async_client.get(reverse("answer", args=["end"]))) as reader:
        *words, close = await reader.rest()
    assert "".join(unescape(event.text) for event in words) == ANSWERS["end"][1]
    assert all(len(event.text.split()) == 1 for event in words)
    assert close.event == "close"


async def test_a_text_goes_on_where_its_client_was(
    async_client: AsyncClient, no_waiting: None
) -> None:
    url = reverse("answer", args=["end"])
    async with reading(await async_client.get(url, headers={"Last-Event-ID": "2"})) as reader:
        assert (await reader.next_event()).text == ANSWERS["end"][1].split()[3] + " "
    async with reading(await async_client.get(url, headers={"Last-Event-ID": "²"})) as reader:
        assert (await reader.next_event()).text == ANSWERS["end"][1].split()[0] + " "


async def test_a_question_that_is_none(async_client: AsyncClient, no_waiting: None) -> None:
    assert (await async_client.get(reverse("topic", args=["life"]))).status_code == 404
    async with reading(await async_client.get(reverse("answer", args=["life"]))) as reader:
        *words, _ = await reader.rest()
    assert "".join(event.text for event in words) == "I do not know."


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo_project.text.SECONDS_PER_WORD", 0)


# An answer that survives


async def ask(client: AsyncClient, pk: UUID, **asked: str) -> Any:
    question = {"question": "Why?", "words": "9", **asked}
    return await client.post(reverse("lasting-answer-events", args=[pk]), question)


@pytest.fixture
def no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo_project.lasting_answer.SECONDS_PER_WORD", 0)


async def test_an_answer_is_the_same_for_whoever_comes_later(
    async_client: AsyncClient, no_pace: None
) -> None:
    pk = uuid4()
    async with reading(await ask(async_client, pk)) as reader:
        begin, *words, close = await reader.rest()
    assert begin.json()["question"] == "Why?"
    assert "".join(word.text for word in words).split() == list(write(f"Why? {pk}", 9))
    assert close.json() == {"reason": "complete"}
    url = reverse("lasting-answer-events", args=[pk])
    async with reading(await AsyncClient().get(url)) as reader:
        again = await reader.rest()
    assert [event.text for event in again] == [event.text for event in (begin, *words, close)]


async def test_an_answer_may_fail_halfway(
    async_client: AsyncClient, no_pace: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with reading(await ask(async_client, uuid4(), fail="on")) as reader:
        _, *words, close = await reader.rest()
    assert len(words) == 5
    assert close.json() == {"reason": "failed"}
    assert "The model was told to fail." in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("question", ""), ("question", "?" * 201), ("words", "0"), ("words", "many")],
)
async def test_a_question_that_cannot_be_is_refused(
    async_client: AsyncClient, field: str, value: str
) -> None:
    response = await ask(async_client, uuid4(), **{field: value})
    assert response.status_code == 400
    assert list(response.json()) == [field]


async def test_a_link_to_no_answer_writes_none(async_client: AsyncClient) -> None:
    url = reverse("lasting-answer-events", args=[uuid4()])
    async with reading(await async_client.get(url)) as reader:
        [close] = await reader.rest()
    assert close.json() == {"reason": "unknown"}


def test_only_a_page_of_the_demo_asks_and_stops() -> None:
    browser = Client(enforce_csrf_checks=True)
    for url in (
        reverse("lasting-answer-events", args=[uuid4()]),
        reverse("progress-of", args=[uuid4()]),
    ):
        assert browser.post(url).status_code == 403
        assert browser.delete(url).status_code == 403
    assert browser.post(reverse("start-long-job")).status_code == 403


# A long job


def test_a_long_job_publishes_its_progress() -> None:
    call_command("long_job", "long-job-x", "2", "0")
    begin, *progress = stored("long-job-x")
    assert begin.json() == {"process": os.getpid()}
    assert [event.json() for event in progress[:3]] == [
        {"done": done, "of": 2} for done in range(3)
    ]


def test_a_long_job_that_was_stopped_before_it_began_does_nothing() -> None:
    cancel("long-job-x", reason="stopped")
    call_command("long_job", "long-job-x", "1000", "60")
    assert not stored("long-job-x")


@pytest.mark.parametrize(
    ("field", "value"), [("steps", "0"), ("steps", "--help"), ("delay", "11"), ("delay", "nan")]
)
def test_a_long_job_that_cannot_be_is_refused(client: Client, field: str, value: str) -> None:
    job = {"steps": "1", "delay": "0", field: value}
    response = client.post(reverse("start-long-job"), job)
    assert response.status_code == 400
    assert list(response.json()) == [field]


# Tabs


async def test_the_streams_of_the_tabs_are_counted(async_client: AsyncClient) -> None:
    async with reading(await async_client.get(reverse("tabs-count"))) as counts:
        assert (await counts.next_event()).text == "0"
        async with reading(await async_client.get(reverse("tabs-events"))):
            assert (await counts.next_event()).text == "1"
        assert (await counts.next_event()).text == "0"


def test_the_numbers_are_published_in_order(client: Client) -> None:
    assert client.post(reverse("publish-numbers")).status_code == 204
    assert [event.text for event in stored("tabs")] == [f"<li>{n}</li>" for n in range(1, 11)]


def test_twenty_tabs_are_opened(client: Client) -> None:
    for url, tabs in ((reverse("tabs"), 1), (f"{reverse('tabs')}?open=20", 20)):
        page = client.get(url).content.decode()
        assert page.count(f'<iframe src="{reverse("tab")}"') == tabs


# The sampler


def test_a_sample_is_of_this_machine() -> None:
    load = sample(seconds=0.05)
    assert 0 <= load["cpu"] <= 100
    assert 0 < load["memory_used"] < load["memory_total"]
    assert load["received"] >= 0
    assert load["sent"] >= 0


def test_the_sampler_publishes_until_its_parent_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    call_command("sample_metrics")
    [event] = stored("metrics")
    assert event.event == "sample"
    assert event.json().keys() == sample(seconds=0.05).keys()


def test_the_sampler_says_once_that_its_group_is_cancelled_and_resumes() -> None:
    command = Command(stdout=StringIO(), stderr=StringIO(), no_color=True)
    load = sample(seconds=0.05)
    cancel("metrics")
    command.publish(load)
    command.publish(load)
    assert str(command.stderr.getvalue()).count("is cancelled") == 1
    reopen("metrics")
    command.publish(load)
    command.publish(load)
    assert command.stdout.getvalue() == "Samples are published again.\n"
    assert [event.json() for event in stored("metrics")] == [json.loads(json.dumps(load))] * 2


@pytest.fixture
def demo_environment(tmp_path: Path) -> dict[str, str]:
    # Without tables: the sampler says so in its first line, and then it is known to run.
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "demo_project.settings",
        "DEMO_DATABASE": str(tmp_path / "demo.sqlite3"),
    }


def test_the_sampler_ends_with_the_server_that_its_shell_became(
    demo_environment: dict[str, str],
) -> None:
    with subprocess.Popen(
        ["sh", "-c", '"$0" manage.py sample_metrics 2>&1 & exec sleep 1000', sys.executable],
        cwd=settings.BASE_DIR,
        env=demo_environment,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout
        assert b"not published" in server.stdout.readline()
        server.kill()
        # The pipe ends once the sampler, too, is gone.
        assert b"Traceback" not in server.stdout.read()


def test_ctrl_c_ends_the_sampler_quietly(demo_environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "manage.py", "sample_metrics"],
        cwd=settings.BASE_DIR,
        env=demo_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A test run in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as sampler:
        assert sampler.stdout
        assert b"not published" in sampler.stdout.readline()
        sampler.send_signal(signal.SIGINT)
        assert sampler.stdout.read() == b""
    assert sampler.returncode == 0
