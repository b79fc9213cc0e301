import json
import os
import re
import shlex
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils.html import escape

from demo_project.management.commands.sample_metrics import Command, sample
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


# The page


def test_the_page_names_its_streams_and_what_to_type(client: Client) -> None:
    page = client.get("/").content.decode()
    for url in (reverse("headlines"), reverse("metrics"), reverse("progress")):
        assert f'data-url="{url}' in page
    assert escape(push_command()) in page


def test_the_page_brings_its_own_style_and_script(client: Client) -> None:
    page = client.get("/").content.decode()
    paths = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(paths) == 3
    for path in paths:
        assert path.startswith("/static/")
        assert finders.find(path.removeprefix("/static/"))


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


async def test_a_new_page_shows_the_newest_headlines_of_before(async_client: AsyncClient) -> None:
    for number in range(7):
        await apublish("news", {"title": number}, event="headline")
    async with reading(await async_client.get(reverse("headlines"))) as reader:
        titles = [(await reader.next_event()).json()["title"] for _ in range(5)]
    assert titles == [2, 3, 4, 5, 6]


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
    async with reading(await async_client.get(reverse("headlines"))) as reader:
        assert (await async_client.post(reverse("cancel-news"))).status_code == 204
        [close] = await reader.rest()
    assert close.event == "close"
    assert close.json() == {"reason": "cancelled on the page"}
    again = await async_client.get(
        reverse("headlines"), headers={"Last-Event-ID": reader.last_event_id}
    )
    assert again.status_code == 204


async def test_a_cancelled_group_still_shows_a_new_page_its_headlines(
    async_client: AsyncClient,
) -> None:
    await apublish("news", HEADLINE, event="headline")
    await acancel("news")
    async with reading(await async_client.get(reverse("headlines"))) as reader:
        events = await reader.rest()
    assert [event.event for event in events] == ["headline", "close"]


def test_reopen_lets_the_group_go_on(client: Client) -> None:
    client.post(reverse("cancel-news"))
    with pytest.raises(GroupCancelled):
        publish("news", HEADLINE)
    assert client.post(reverse("reopen-news")).status_code == 204
    publish("news", HEADLINE)


@pytest.mark.parametrize("name", ["cancel-news", "reopen-news"])
def test_the_buttons_only_work_from_the_page(name: str) -> None:
    browser = Client(enforce_csrf_checks=True)
    assert browser.get(reverse(name)).status_code == 405
    assert browser.post(reverse(name)).status_code == 403
    browser.get("/")
    token = browser.cookies["csrftoken"].value
    assert browser.post(reverse(name), {"csrfmiddlewaretoken": token}).status_code == 204


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
