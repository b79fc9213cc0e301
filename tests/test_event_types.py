"""Views declare the types of their events, which scripts and APIs get to know."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, make_dataclass
from datetime import datetime
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypedDict
from unittest.mock import patch
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import URLPattern, include, path, re_path, register_converter
from django.urls.converters import IntConverter
from django.utils.functional import lazystr
from pytest_django import Settings

import django_sse
from django_sse import (
    Event,
    InvalidEvent,
    apublish,
    publish,
    publish_many,
    publish_to_user,
    type_checks,
    user_group,
)
from django_sse.decorators import event_generator, event_producer
from django_sse.groups.names import USER_GROUP_PATTERN, could_make
from django_sse.producing import aproduce
from django_sse.schemas import schemas_of
from django_sse.testing import published
from django_sse.views import EventStreamView, UserEventStreamView
from tests import npm

TYPESCRIPT = Path(__file__).with_name("typescript")
CLIENT = Path(django_sse.__file__).parent / "static/django_sse/event-stream.js"


class SignedConverter(IntConverter):
    regex = "-?[0-9]+"


register_converter(SignedConverter, "signed")


@dataclass
class Author:
    name: str
    born: datetime | None = None


class Headline(pydantic.BaseModel):
    title: str = pydantic.Field(serialization_alias="theTitle")
    author: Author
    price: Decimal
    kind: Literal["news", "weather"]
    tags: list[str]
    scores: dict[str, float]
    place: tuple[int, int]
    anything: Any


class Moved(msgspec.Struct, rename="camel", tag=True):
    card_id: int
    to: "list[Moved]" = msgspec.field(default_factory=list)


class Removed(TypedDict):
    pk: int


@attrs.define
class Drawn:
    x: float


class HeadlinesView(EventStreamView):
    groups = ["news"]
    event_types = {"headline": Headline, "message": str, "card.moved": Moved}


@event_producer("answer-{pk}", event_types={"removed": Removed, "all": list[Removed]})
async def long_answer(request: HttpRequest, pk: int) -> Any:
    yield "a"


@event_generator(event_types={"drawn": Drawn})
async def drawing(request: HttpRequest) -> Any:
    yield "a"


class Untyped(EventStreamView):
    groups = ["news"]


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


URLS = [
    path("", page),
    path("untyped/", Untyped.as_view()),
    path("a/", include([path("headlines/", HeadlinesView.as_view(), name="other")])),
    path("again/", HeadlinesView.as_view()),
    path("answers/<int:pk>/", long_answer),
    path("drawing/", drawing),
    path(
        "b/",
        EventStreamView.as_view(groups=["b"], event_types={"author": Author}),
        name="authors-of-b",
    ),
]

WRITTEN = """\
// Written by `manage.py sse_types`.

export interface Author {
  name: string;
  born?: string | null;
}

export interface Drawn {
  x: number;
}

export interface Headline {
  theTitle: string;
  author: Author;
  price: string;
  kind: "news" | "weather";
  tags: Array<string>;
  scores: Record<string, number>;
  place: [number, number];
  anything: unknown;
}

export interface Moved {
  type: "Moved";
  cardId: number;
  to?: Array<Moved>;
}

export interface Removed {
  pk: number;
}

export interface HeadlinesEvents {
  headline: Headline;
  message: string;
  "card.moved": Moved;
}

export interface LongAnswerEvents {
  removed: Removed;
  all: Array<Removed>;
}

export interface DrawingEvents {
  drawn: Drawn;
}

export interface AuthorsOfBEvents {
  author: Author;
}
"""


@contextmanager
def urls(*patterns: URLPattern | Any) -> Iterator[None]:
    class Urls:
        urlpatterns = patterns

    with override_settings(ROOT_URLCONF=Urls):
        yield


def types(*patterns: Any) -> str:
    output = StringIO()
    with urls(*patterns):
        call_command("sse_types", stdout=output)
    return output.getvalue()


def test_the_types_of_all_views_are_written() -> None:
    assert types(*URLS) == WRITTEN


GOOD = """\
import { EventStream } from "./event-stream.js";
import type { DrawingEvents, HeadlinesEvents } from "./events.d.ts";

const stream = new EventStream<HeadlinesEvents>("/a/headlines/", { json: true });
stream.addEventListener("headline", (event) => {
  const title: string = event.data.theTitle;
  const name: string = event.data.author.name;
});
stream.addEventListener("card.moved", (event) => event.data.cardId.toFixed());
stream.addEventListener("close", (event) => event.reason?.length);
stream.onmessage = (event) => event.data.toUpperCase();
new EventStream<{ word: string }>("/").addEventListener("word", (event) => event.data.length);
const untyped: EventStream = new EventStream("/");
untyped.addEventListener("any name", (event) => event.data.of.any.kind);
untyped.removeEventListener("error", null);
const target: EventTarget = stream;
"""

BAD = """\
new EventStream<HeadlinesEvents>("/a/headlines/");
stream.addEventListener("headlin", (event) => event);
stream.addEventListener("headline", (event) => event.data.titel);
stream.addEventListener("headline", (event: MessageEvent<number>) => event);
new EventStream("/", { jsn: true });
"""


@pytest.mark.once
def test_a_stream_of_the_browser_knows_its_types(tmp_path: Path) -> None:
    npm.install(TYPESCRIPT)
    for name in ("event-stream.js", "event-stream.d.ts"):
        shutil.copy(CLIENT.with_name(name), tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "events.d.ts").write_text(types(*URLS))
    (tmp_path / "page.ts").write_text(GOOD + BAD)
    options = "--noEmit --strict --target es2022 --module nodenext --moduleResolution nodenext"
    checked = subprocess.run(
        [TYPESCRIPT / "node_modules/.bin/tsc", *options.split(), "page.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )
    wrong = [line for line in checked.stdout.splitlines() if line.startswith("page.ts(")]
    first = len(GOOD.splitlines()) + 1
    lines = [int(line.split("(")[1].split(",")[0]) for line in wrong]
    assert lines == [*range(first, first + len(BAD.splitlines()))], checked.stdout


def test_a_project_without_types_is_told_how_to_declare_them() -> None:
    with pytest.raises(CommandError, match="event_types"):
        types(path("untyped/", Untyped.as_view()))


def test_two_views_of_one_name_are_refused() -> None:
    other = type("Headlines", (EventStreamView,), {"groups": ["b"], "event_types": {"a": int}})
    with pytest.raises(CommandError, match="Rename one"):
        types(*URLS, path("c/", other.as_view()))  # type: ignore[attr-defined]


def test_a_type_with_the_name_of_a_view_is_refused() -> None:
    taken = make_dataclass("HeadlinesEvents", [("x", int)])
    view = EventStreamView.as_view(groups=["b"], event_types={"a": taken})
    with pytest.raises(CommandError, match="HeadlinesEvents"):
        types(*URLS, path("c/", view, name="c"))


class Foreign:
    pass


def test_a_type_that_no_library_knows_is_refused_by_its_name() -> None:
    view = EventStreamView.as_view(groups=["b"], event_types={"a": Foreign})
    with pytest.raises(CommandError, match=r"Foreign.*Install pydantic"):
        types(path("c/", view, name="c"))


def test_without_a_library_its_names_are_told() -> None:
    missing = {"pydantic": None, "msgspec": None, "msgspec.json": None}
    with (
        patch.dict(sys.modules, missing),
        pytest.raises(ImproperlyConfigured, match=r"Install pydantic.*or msgspec.*Neither"),
    ):
        schemas_of([Author])


@pytest.mark.parametrize("missing", ["pydantic", "msgspec"])
def test_one_library_is_enough(missing: str) -> None:
    with patch.dict(sys.modules, {missing: None, f"{missing}.json": None}):
        [schema], definitions = schemas_of([Author])
    assert schema == {"$ref": "#/$defs/Author"}
    assert definitions["Author"]["properties"]["name"]["type"] == "string"


def test_types_of_one_name_of_two_libraries_are_refused() -> None:
    other = pydantic.create_model("Moved", x=(int, 1))
    with pytest.raises(ImproperlyConfigured, match="Moved"):
        schemas_of([Moved, other])


@pytest.mark.parametrize(
    "wrong", [["headline"], {1: str}, {"close": str}, {"error": str}, {"a\nb": str}, None]
)
def test_event_types_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"event_types must be a dict"):
        EventStreamView.as_view(groups=["news"], event_types=wrong)


# What is published is checked


class UserView(UserEventStreamView):
    event_types = {"headline": Headline}


board = EventStreamView.as_view(groups=["board-{pk}"], event_types={"n": int})
CHECKED_URLS = [
    *URLS,
    path("boards/<int:pk>/", board),
    path("own/", UserView.as_view()),
    path("any/<str:slug>/", EventStreamView.as_view(groups=["a-{slug}"])),
]


@pytest.fixture
def checked(settings: Settings) -> Iterator[None]:
    settings.DJANGO_SSE = {"STORE": "memory", "CHECK_EVENT_TYPES": True}
    with urls(*CHECKED_URLS):
        yield


AS_DECLARED = {
    "theTitle": "hi",
    "author": {"name": "Ada"},
    "price": "1.50",
    "kind": "news",
    "tags": [],
    "scores": {},
    "place": [1, 2],
    "anything": None,
}


@pytest.mark.usefixtures("checked")
def test_what_is_as_declared_is_published() -> None:
    assert publish("news", AS_DECLARED, event="headline").number
    # As JSON of their own, and without a type.
    assert publish("news", json.dumps(AS_DECLARED), event="headline").number
    assert publish("news", "any text").number
    assert publish("news", "5").number
    assert publish("news", lazystr("5")).number
    assert publish("news", "[" * 100_000).number
    assert publish("board-7", 1, event="n").number
    assert publish("news", Event(comment="no data")).number
    # No view declares what these have.
    assert publish("a-b", {"x": 1}, event="y").number
    assert publish("elsewhere", {"x": 1}, event="y").number
    publish_to_user(7, AS_DECLARED, event="headline")


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("group", "data", "event", "why"),
    [
        ("news", AS_DECLARED | {"kind": "sports"}, "headline", "'sports' is not one of .*kind"),
        ("news", {"titel": "hi"}, "headline", "'theTitle' is a required property"),
        ("news", "hi", "headline", "not of type 'object'"),
        ("news", AS_DECLARED, "headlien", "HeadlinesView have only headline, message, card"),
        ("news", {"a": 1}, None, "'message'.* not of type 'string'"),
        ("board-7", "x", "n", "'x' is not of type 'integer'"),
        (user_group(7), {}, "headline", "UserView declares"),
        ("answer-7", "x", None, "long_answer have only removed, all"),
    ],
)
def test_what_is_not_as_declared_is_refused(group: str, data: Any, event: Any, why: str) -> None:
    with published() as events, pytest.raises(InvalidEvent, match=why):
        publish_many([("elsewhere", "x"), (group, Event(data, event=event))])
    assert not events


@pytest.mark.usefixtures("checked", "everything_ends")
async def test_what_producers_publish_is_checked() -> None:
    async with aproduce("answer-7") as producer:
        await producer.apublish({"pk": 1}, event="removed")
        with pytest.raises(InvalidEvent, match="'pk' is a required property"):
            await producer.apublish({}, event="removed")


def test_nothing_is_checked_unless_it_is_asked_for(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    with urls(*CHECKED_URLS):
        assert publish("news", {"titel": "hi"}, event="headlien").number


@pytest.mark.usefixtures("checked")
def test_without_jsonschema_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.delitem(sys.modules, "jsonschema.exceptions", raising=False)
    type_checks._validators.clear()
    with pytest.raises(ImproperlyConfigured, match="pip install jsonschema"):
        publish("news", AS_DECLARED, event="headline")


@pytest.mark.usefixtures("checked")
def test_what_is_wrong_is_said_in_short() -> None:
    with pytest.raises(InvalidEvent) as caught:
        publish("news", "x" * 100_000, event="headline")
    assert len(str(caught.value)) < 1000


async def test_of_two_urlconfs_the_present_one_counts(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "CHECK_EVENT_TYPES": True}
    for name in ("one", "another"):
        view = EventStreamView.as_view(groups=["news"], event_types={name: int})
        with urls(path("", view)):
            await apublish("news", 1, event=name)


class Named(pydantic.BaseModel):
    name: str = pydantic.Field(pattern=r"^\p{Lu}")


def test_a_pattern_that_python_does_not_know_is_named(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "CHECK_EVENT_TYPES": True}
    view = EventStreamView.as_view(groups=["news"], event_types={"named": Named})
    with (
        urls(path("", view)),
        pytest.raises(ImproperlyConfigured, match=r"'named' of EventStreamView: .*\\p\{Lu\}"),
    ):
        publish("news", {"name": "Ada"}, event="named")


@pytest.mark.parametrize(
    ("url", "group", "counts"),
    [
        ("<int:pk>/", "room-7", True),
        ("<int:pk>/", "room-0", True),
        ("<int:pk>/", "room-07", False),
        ("<int:pk>/", "room-x", False),
        ("<slug:pk>/", "room-x-1", True),
        ("<slug:pk>/", "room-x.y", False),
        ("<uuid:pk>/", f"room-{UUID(int=7)}", True),
        ("<uuid:pk>/", "room-7", False),
        ("<str:pk>/", "room-x.y", True),
        ("<pk>/", "room-x.y", True),
        ("<signed:pk>/", "room--7", True),
    ],
)
def test_a_group_counts_that_the_url_could_name(
    settings: Settings, url: str, group: str, counts: bool
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "CHECK_EVENT_TYPES": True}
    view = EventStreamView.as_view(groups=["room-{pk}"], event_types={"n": int})
    for routes in (
        [path(url, view)],
        [path(url, include([path("events/", view)]))],
        [re_path("^a/(?P<pk>.+)/", include([path(url, view)]))],
    ):
        with urls(*routes), pytest.raises(InvalidEvent) if counts else nullcontext():
            publish(group, "x", event="other")


def test_an_argument_that_the_urlconf_gives_may_be_any(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "CHECK_EVENT_TYPES": True}
    view = EventStreamView.as_view(groups=["room-{pk}"], event_types={"n": int})
    for routes in (
        [path("<int:pk>/", view, {"pk": "x"})],
        [path("<int:pk>/", include([path("events/", view)]), {"pk": "x"})],
    ):
        with urls(*routes), pytest.raises(InvalidEvent):
            publish("room-x", "x", event="other")


@pytest.mark.parametrize(
    ("pattern", "group", "could"),
    [
        ("news", "news", True),
        ("news", "news-1", False),
        ("room-{a}", "room-1-2", True),
        ("room-{a}", "room-", True),
        ("room-{a}-{b}", "room-1-2", True),
        # An argument with a separator is refused.
        ("room-{a}-{b}", "room-1-2-3", False),
        ("{a}", "sse.user.7", False),
        ("sse.user.{a}", "sse.user.7", False),
        (USER_GROUP_PATTERN, "sse.user.7", True),
    ],
)
def test_a_pattern_could_make_the_names_of_its_groups(
    pattern: str, group: str, could: bool
) -> None:
    assert could_make(pattern, group, {}) is could
