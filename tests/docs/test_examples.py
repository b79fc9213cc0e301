"""The code of the README and of the documentation runs, and does what the text says."""

import ast
import asyncio
import os
import re
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import AsyncMock, Mock, patch
from urllib.parse import urlencode
from uuid import UUID

import ninja  # noqa: F401
import pytest
from _pytest.mark import ParameterSet
from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, models
from django.test import (
    AsyncClient,
    AsyncRequestFactory,
    Client,
    RequestFactory,
    override_settings,
)
from django.urls import re_path

# What registers itself is imported once: `run` forgets the modules that an example imports.
import django_sse.contrib.rest_framework  # noqa: F401
from django_sse import apublish, position, publish
from django_sse.producing import produce
from django_sse.signals import event_published, stream_closed, stream_opened
from django_sse.testing import open_stream
from django_sse.views import EventStreamView
from tests.docs.pages import PAGES, README, blocks
from tests.streams import reading

IN_PYTHON = [page for page in PAGES if blocks("python", page)]

Run = Callable[[str], dict[str, Any]]


def run_block(block: str, page: str, namespace: dict[str, Any]) -> None:
    exec(compile(block, page, "exec"), namespace)


@pytest.fixture
def run() -> Iterator[Run]:
    """Run a page's python blocks, one after the other; return the names that they define."""

    def run(page: str) -> dict[str, Any]:
        # What a new project has.
        namespace: dict[str, Any] = {
            "__name__": "example",
            "BASE_DIR": Path(),
            "INSTALLED_APPS": [],
            "TEMPLATES": [{}],
            "DATABASES": {"default": {}},
            "urlpatterns": [],
        }
        views = ModuleType("mysite.views")
        modules = {"mysite": ModuleType("mysite"), "mysite.views": views}
        # Two pages may have models of the same name.
        with patch.dict(sys.modules, modules), patch.dict(apps.all_models, {"shop": {}}):
            for block in blocks("python", page):
                run_block(block, page, namespace)
                vars(views).update(namespace)
        return namespace

    key = {"MERCURE_KEY": "a secret of at least 32 characters"}
    with (
        patch.dict(os.environ, key),
        override_settings(DJANGO_SSE={"STORE": "memory"}),
        ExitStack() as signals,
    ):
        # No other test has the receivers of an example.
        for signal in (event_published, stream_closed, stream_opened):
            signals.enter_context(patch.object(signal, "receivers", []))
        yield run


@pytest.mark.parametrize("page", IN_PYTHON)
def test_every_python_block_runs(page: str, run: Run) -> None:
    run(page)


@pytest.mark.parametrize("page", IN_PYTHON)
def test_every_import_is_of_a_name_that_exists(page: str) -> None:
    for block in blocks("python", page):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "django_sse"
            ):
                continue
            module = import_module(node.module or "")
            names = {alias.name for alias in node.names}
            assert names <= set(getattr(module, "__all__", vars(module)))


@pytest.mark.parametrize("page", [README, "docs/index.md"])
async def test_the_first_example_streams_what_it_publishes(page: str, run: Run) -> None:
    request = AsyncRequestFactory().get("/events/")
    response = await run(page)["Headlines"].as_view()(request)
    assert response["Content-Type"] == "text/event-stream; charset=utf-8"
    async with aclosing(aiter(response.streaming_content)) as chunks:
        await anext(chunks)
        await apublish("news", {"title": "hi"}, event="headline")
        assert b'event: headline\ndata: {"title":"hi"}\n\n' in await anext(chunks)


TENANTS = "docs/tenants.md"
TESTING = "docs/testing.md"


def test_what_names_tenants_is_in_the_same_example(run: Run) -> None:
    of_tenants = [block for block in blocks("python", TENANTS) if '"NAMESPACE"' in block]
    assert of_tenants
    for block in of_tenants:
        defined: dict[str, Any] = {}
        run_block(block, TENANTS, defined)
        for path in defined["DJANGO_SSE"].values():
            assert callable(defined[path.removeprefix("mysite.tenants.")])


async def test_the_tenants_of_the_example_are_kept_apart(run: Run) -> None:
    examples = run(TENANTS)
    of_example = {"NAMESPACE": f"{__name__}.named_in_example"}
    globals()["named_in_example"] = examples["current_tenant"]
    view = EventStreamView.as_view(groups=["news"])
    with override_settings(DJANGO_SSE={"STORE": "memory", **of_example}):
        with examples["in_tenant"]("north"):
            response = await view(AsyncRequestFactory().get("/"))
        async with reading(response) as stream:
            for name in ("south", "north"):
                with examples["in_tenant"](name):
                    await apublish("news", f"of the {name}")
            assert (await stream.next_event()).data == "of the north"


def test_the_publishing_examples_publish(run: Run) -> None:
    before = publish("news", "before").id
    run("docs/publishing.md")["tick"]()
    assert position("news") != before


def test_the_tests_on_the_page_about_tests_pass(run: Run, transactional_db: None) -> None:
    class Urls:
        urlpatterns = [re_path("^events/$", EventStreamView.as_view(groups=["news"]))]

    examples = run(TESTING)
    with override_settings(ROOT_URLCONF=Urls):
        for name, count in (("HeadlinesTests", 2), ("PublishingTests", 1)):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(examples[name]).run(result)
            assert (result.testsRun, result.errors, result.failures) == (count, [], [])
        examples["test_a_headline_is_streamed"](None, Client(), open_stream)


async def test_the_async_test_on_the_page_about_tests_passes(
    run: Run, transactional_db: None
) -> None:
    class Urls:
        urlpatterns = [re_path("^events/$", EventStreamView.as_view(groups=["news"]))]

    examples = run(TESTING)
    with override_settings(ROOT_URLCONF=Urls):
        await examples["test_a_headline_is_streamed_to_async_code"](AsyncClient(), open_stream)


async def test_the_stream_of_a_job_ends_with_it_and_says_how(
    run: Run, transactional_db: None
) -> None:
    examples = run("docs/job-progress.md")
    ada, grace = [await User.objects.acreate(username=name) for name in ("ada", "grace")]
    client, stranger = AsyncClient(), AsyncClient()
    await client.aforce_login(ada)
    await stranger.aforce_login(grace)

    class Urls:
        urlpatterns = examples["urlpatterns"]

    def import_row(row: str) -> None:
        if row == "broken":
            raise ValueError(row)

    examples["import_row"] = import_row
    job, url = UUID(int=1), f"/imports/{UUID(int=1)}/progress/"
    group, rows = examples["group_of"](ada, job), ["one", "two", "broken"]
    with override_settings(ROOT_URLCONF=Urls):
        async with open_stream(client, url) as stream, open_stream(stranger, url) as other:
            with pytest.raises(ValueError, match="broken"):
                await asyncio.to_thread(examples["import_rows"], group, rows)
            done = (await stream.next("progress")).json()["done"]
            if done == 1:
                done = (await stream.next("progress")).json()["done"]
            # Or at once: of a key, a client that lags gets the newest.
            assert done == 2
            await stream.closed("failed")
            await other.nothing()
        # Whoever comes later.
        async with open_stream(client, url) as stream:
            while (event := await stream.next()).event == "progress":
                assert event.json()["of"] == 3
            assert event.json() == {"reason": "failed"}
        # A task that is delivered twice.
        await asyncio.to_thread(examples["import_rows"], group, rows)

        shared = examples["group_of"](ada, UUID(int=2))
        async with open_stream(client, f"/imports/{UUID(int=2)}/progress/") as stream:
            await asyncio.to_thread(examples["import_part"], shared, "first", ["one"])
            await asyncio.to_thread(examples["import_part"], shared, "second", ["one"])
            assert [(await stream.next()).json()["part"] for _ in range(2)] == ["first", "second"]
            await asyncio.to_thread(examples["import_is_over"], shared)
            await stream.closed("complete")

        def show_bar() -> None:
            with produce(examples["group_of"](ada, UUID(int=3))) as producer:
                examples["publish_bar"](producer, 1, 2)

        async with open_stream(client, f"/imports/{UUID(int=3)}/progress/") as stream:
            await asyncio.to_thread(show_bar)
            bar = await stream.next("bar")
            assert bar.data == '<progress value="1" max="2"></progress>'


# The views, asked by anybody


def views() -> Iterator[ParameterSet]:
    """Yield the page, the block and the name of each view, and whether it is guarded."""
    for page in IN_PYTHON:
        for block in blocks("python", page):
            for node in ast.parse(block).body:
                match node:
                    case ast.ClassDef(
                        name, bases=[*_, ast.Name("EventStreamView" | "EventGeneratorView")]
                    ) | ast.AsyncFunctionDef(name, ast.arguments(args=[ast.arg("request"), *_])):
                        # It reads the user, or a mixin does.
                        source = ast.get_source_segment(block, node) or ""
                        is_guarded = bool(re.search("auser|RequiredMixin|UserPasses", source))
                        yield pytest.param(page, block, name, is_guarded, id=f"{page}-{name}")


def example(page: str, name: str, containing: str, examples: dict[str, Any]) -> Any:
    """Return what is called so in the block that contains a text, since names come twice."""
    [block] = [block for block in blocks("python", page) if containing in block]
    run_block(block, page, examples)
    return examples[name]


@contextmanager
def served(view: Any) -> Iterator[None]:
    """Serve a view at ``/<pk>/``."""
    if isinstance(view, type):
        view = view.as_view()  # type: ignore[attr-defined]
    parameters = signature(view).parameters
    route = r"^(?P<pk>\d+)/$" if {"pk", "kwargs"} & parameters.keys() else r"^\d+/$"

    class Urls:
        urlpatterns = [re_path(route, view)]

    with override_settings(ROOT_URLCONF=Urls):
        yield


def model(name: str, **fields: Any) -> Any:
    meta = type("Meta", (), {"app_label": "tests"})
    return type(name, (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


Room = model("Room", members=models.ManyToManyField(User, related_name="rooms"))
Membership = model(
    "Membership",
    room=models.ForeignKey(Room, models.CASCADE),
    user=models.ForeignKey(User, models.CASCADE, related_name="+"),
)
Card = model(
    "Card", board=models.ForeignKey(Room, models.CASCADE), title=models.CharField(max_length=9)
)
Job = model("Job", owner=models.ForeignKey(User, models.SET_NULL, null=True, related_name="+"))


@pytest.fixture
def tables(transactional_db: None) -> Iterator[None]:
    """The models that the examples ask who may read what, in the database."""
    with connection.schema_editor() as editor:
        for table in (Room, Membership, Card, Job):
            editor.create_model(table)
    yield
    with connection.schema_editor() as editor:
        for table in (Job, Card, Membership, Room):
            editor.delete_model(table)


LOGINS = "docs/logins-and-permissions.md"
VIEWS = "docs/views.md"

# What a client may say that it has got.
MADE_UP = ["", "x", "-1", "-1000000", "1.5", "\u00b2", "9" * 5000, "\0", "a.b~c.d"]


@pytest.mark.usefixtures("tables", "everything_ends")
@pytest.mark.parametrize(("page", "block", "name", "is_guarded"), [*views()])
@pytest.mark.parametrize("pk", [1, 10**30], ids=["one", "huge"])
async def test_each_view_answers_a_stranger(
    async_client: AsyncClient,
    run: Run,
    page: str,
    block: str,
    name: str,
    is_guarded: bool,
    pk: int,
) -> None:
    examples = run(page)
    run_block(block, page, examples)
    with served(examples[name]):
        for last_event_id in MADE_UP:
            query = urlencode({"lastEventId": last_event_id})
            response = await async_client.get(f"/{pk}/?{query}")
            if is_guarded:
                assert response.status_code in (401, 403)
            else:
                assert response.status_code == 200
                async with reading(response) as reader:
                    await reader.opened()


@pytest.mark.usefixtures("tables", "everything_ends")
@pytest.mark.parametrize(
    ("page", "name", "containing"),
    [
        (README, "Room", "user.rooms"),
        (LOGINS, "Room", "user.rooms"),
        (LOGINS, "Room", "Membership.objects"),
        (VIEWS, "job", "Job.objects"),
    ],
)
async def test_users_read_what_is_theirs_and_nothing_else(
    async_client: AsyncClient, run: Run, page: str, name: str, containing: str
) -> None:
    examples = run(page)
    view = example(page, name, containing, examples)
    examples |= {"Membership": Membership, "Job": Job}
    ada, grace = [await User.objects.acreate(username=name) for name in ("ada", "grace")]
    room = await Room.objects.acreate(pk=1)
    await room.members.aadd(ada)
    await Membership.objects.acreate(room=room, user=ada)
    await Job.objects.acreate(pk=1, owner=ada)
    # Its owner was deleted.
    await Job.objects.acreate(pk=2, owner=None)
    with served(view):
        for pk in (1, 2):
            assert (await async_client.get(f"/{pk}/")).status_code in (401, 403)
        await async_client.aforce_login(ada)
        async with reading(await async_client.get("/1/")) as reader:
            await reader.opened()
        for pk in (2, 10**30):
            assert (await async_client.get(f"/{pk}/")).status_code == 403
        await async_client.aforce_login(grace)
        assert (await async_client.get("/1/")).status_code == 403


@pytest.mark.usefixtures("tables", "everything_ends")
async def test_a_board_shows_its_cards_and_one_that_cannot_be_has_none(
    async_client: AsyncClient, run: Run
) -> None:
    examples = run(VIEWS)
    examples |= {"Card": Card}
    board = await Room.objects.acreate(pk=1)
    await Card.objects.acreate(board=board, title="one")
    await async_client.aforce_login(await User.objects.acreate(username="ada"))
    with served(examples["Board"]):
        for pk, cards in ((1, ["card"]), (10**30, [])):
            async with reading(await async_client.get(f"/{pk}/")) as reader:
                await reader.opened()
                await apublish("announcements", "the end", event="end")
                events = await reader.until("the end")
            assert [event.event for event in events] == [*cards, "end"]


async def test_nobody_is_still_allowed(run: Run) -> None:
    examples = run(LOGINS)
    view = example(LOGINS, "Room", "Membership.objects", examples)()
    examples["Membership"] = Membership
    request = AsyncRequestFactory().get("/")
    # As `auser` is after the end of a session.
    request.auser = AsyncMock(return_value=AnonymousUser())
    view.setup(request, pk=1)
    assert await view.still_allowed() is False


@pytest.mark.parametrize(
    ("last_event_id", "first"), [("3", 4), ("9", 10), *((made_up, 1) for made_up in MADE_UP)]
)
async def test_the_generator_begins_behind_an_id_of_its_own_alone(
    run: Run, last_event_id: str, first: int
) -> None:
    examples = run("docs/generators.md")
    view = examples["count"]
    examples["asyncio"] = Mock(sleep=AsyncMock())
    query = urlencode({"lastEventId": last_event_id})
    async with reading(await view(AsyncRequestFactory().get(f"/?{query}"))) as reader:
        *steps, close = await reader.rest()
    assert [event.json()["step"] for event in steps] == [*range(first, 11)]
    assert close.event == "close"


@pytest.mark.parametrize("title", ["", "a" * 300_000])
def test_any_title_is_submitted(run: Run, title: str) -> None:
    response = run(README)["submit"](RequestFactory().post("/", {"title": title} if title else {}))
    assert response.status_code == 202


@pytest.mark.usefixtures("everything_ends")
async def test_who_comes_from_django_eventstream_keeps_its_ids_texts_and_channels(run: Run) -> None:
    examples = run("docs/from-django-eventstream.md")
    view = examples["Chosen"].as_view()
    request = AsyncRequestFactory().get("/?channel=weather&channel=secret&lastEventId=weather:5")
    async with reading(await view(request)) as stream:
        await stream.opened()
        for channel in ("secret", "weather"):
            await sync_to_async(examples["send_event"])(channel, "message", f"of {channel}")
        event = await stream.next_event()
        assert event.data == '"of weather"'
