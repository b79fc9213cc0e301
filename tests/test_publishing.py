"""Publishing, cancelling and reopening, as a project's code does it."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.template import TemplateDoesNotExist
from django.test import RequestFactory, override_settings
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from pytest_django import Settings

import django_sse
from django_sse import (
    Event,
    GroupCancelled,
    InvalidEvent,
    InvalidGroup,
    acancel,
    aposition,
    apublish,
    apublish_many,
    apublish_template,
    areopen,
    cancel,
    position,
    publish,
    publish_many,
    publish_template,
    reopen,
)
from django_sse.event import Decoder
from django_sse.groups.position import parse_position
from django_sse.stores import get_store
from django_sse.testing.threads import in_thread
from django_sse.views import EventStreamView
from tests.streams import open_stream

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("everything_ends")]


async def published(group: str) -> list[Event]:
    """What a client would decode of the group's history."""
    entries = await get_store().aread(group, 0, 1000)
    return [event for entry in entries for event in Decoder().feed(entry.wire)]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("text", "text"),
        ("", ""),
        ({"price": Decimal("1.50")}, '{"price":"1.50"}'),
        (None, "null"),
        ([1, True], "[1,true]"),
        (Event("wrapped", event="named"), "wrapped"),
    ],
)
async def test_text_goes_as_it_is_and_anything_else_as_json(data: Any, text: str) -> None:
    await apublish("news", data)
    assert [event.text for event in await published("news")] == [text]


async def test_what_publish_returns_is_the_id_that_clients_see() -> None:
    first = await apublish("news", "a")
    assert first.id == await aposition("news")


@pytest.mark.parametrize(
    ("publish_it", "error", "says"),
    [
        (lambda: publish("not a group", "x"), InvalidGroup, "hyphens"),
        (lambda: publish("g" * 100, "x"), InvalidGroup, "1 to 99"),
        (lambda: publish("news", "x", event="close"), InvalidEvent, "belong to EventSource"),
        (lambda: publish("news", "x", event="a\nb"), InvalidEvent, "CR, LF or NUL"),
        (lambda: publish("news", Event("x", id="1")), InvalidEvent, "the store gives it one"),
        (lambda: publish("news", Event()), InvalidEvent, "nothing to send"),
        (lambda: publish("news", Event("x"), event="y"), InvalidEvent, "not in both"),
        (lambda: publish("news", b"x"), InvalidEvent, "JSON"),
        (lambda: publish("news", float("nan")), InvalidEvent, "JSON"),
        (lambda: publish("news", "x" * 300_000), InvalidEvent, "MAX_EVENT_BYTES"),
        (lambda: cancel("news", reason=7), InvalidEvent, "must be text"),  # type: ignore[arg-type]
        (lambda: cancel("not a group"), InvalidGroup, "hyphens"),
        (lambda: reopen(""), InvalidGroup, "hyphens"),
        (lambda: position("ü"), InvalidGroup, "hyphens"),
    ],
)
def test_bad_input_is_refused_and_the_error_says_why(
    publish_it: Callable[[], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        publish_it()
    assert isinstance(caught.value, ValueError)
    assert parse_position(position("news"), ["news"]) == {"news": 0}


async def test_sync_functions_on_a_running_loop_name_their_async_form() -> None:
    for function, arguments in [
        (publish, ("news", "x")),
        (publish_many, ([("news", "x")],)),
        (cancel, ("news",)),
        (reopen, ("news",)),
        (position, ("news",)),
    ]:
        with pytest.raises(SynchronousOnlyOperation, match=rf"await a{function.__name__}\(\)"):
            function(*arguments)  # type: ignore[operator]


def test_publishing_many_appends_all_or_none() -> None:
    cancel("over")
    with pytest.raises(GroupCancelled, match="reopen"):
        publish_many([("news", "a"), ("over", "b")])
    assert parse_position(position("news"), ["news"]) == {"news": 0}
    ids = [published.id for published in publish_many([("news", "a"), ("news", Event("b"))])]
    assert ids[1] == position("news")
    assert publish_many([]) == []


async def test_a_cancelled_group_is_reopened_by_the_function_that_the_error_names() -> None:
    await acancel("news")
    with pytest.raises(GroupCancelled) as caught:
        await apublish("news", "x")
    assert "django_sse.reopen('news')" in str(caught.value)
    assert "manage.py sse_reopen news" in str(caught.value)
    await areopen("news")
    await apublish("news", "y")
    assert [event.text for event in await published("news")] == ['{"reason":null}', "y"]


async def test_async_publishing_under_async_to_sync_joins_the_callers_transaction() -> None:
    def roll_back() -> None:
        with transaction.atomic():
            assert async_to_sync(apublish)("news", "x").id is None
            assert [p.id for p in async_to_sync(apublish_many)([("news", "y")])] == [None]
            async_to_sync(acancel)("news")
            transaction.set_rollback(True)

    await in_thread(roll_back)
    assert await published("news") == []


async def test_nested_transactions_publish_what_was_not_rolled_back_in_order() -> None:
    def nest() -> None:
        with transaction.atomic():
            publish("news", "1")
            with transaction.atomic():
                publish("news", "rolled back")
                transaction.set_rollback(True)
            with transaction.atomic():
                publish("news", "2")
            publish("news", "3")

    await in_thread(nest)
    assert [event.text for event in await published("news")] == ["1", "2", "3"]


class Name(str, Enum):  # noqa: UP042  (its str() is its name)
    PAID = "paid"


@pytest.mark.parametrize("store", ["memory", "database"])
async def test_a_group_that_is_a_member_of_an_enum_is_its_value(
    store: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"STORE": store}
    made = await apublish(Name.PAID, Name.PAID, event=Name.PAID)
    assert (type(made.group), made.group) == (str, "paid")
    assert await published("paid") == [Event("paid", event="paid")]
    assert made.id == await aposition(Name.PAID) == await aposition("paid")
    await acancel(Name.PAID)
    with pytest.raises(GroupCancelled):
        await apublish("paid", "too late")
    await areopen(Name.PAID)
    await apublish("paid", "again")
    async with open_stream(EventStreamView.as_view(groups=[Name.PAID])) as reader:
        await apublish(Name.PAID, "live")
        assert (await reader.next_event()).data == "live"


async def test_tasks_that_publish_at_once_all_get_numbers_of_their_own() -> None:
    results = await asyncio.gather(*(apublish("news", n) for n in range(50)))
    assert len({result.id for result in results}) == 50
    assert sorted(int(event.text) for event in await published("news")) == list(range(50))


@pytest.mark.parametrize("store", ["memory", "database"])
async def test_every_store_serves_the_same_functions(store: str) -> None:
    with override_settings(DJANGO_SSE={"STORE": store}):
        before = await aposition("news", "sport")
        await apublish("news", "a")
        await acancel("sport")
        assert await aposition("news", "sport") != before
        assert [event.text for event in await published("news")] == ["a"]
        await get_store().aclose()


# Templates

ROW = "<li>\n  {{ title }}\n</li>\n"
RENDERED = "<li>\n  &lt;hi&gt;\n</li>\n"


@pytest.fixture
def row_template(settings: Settings) -> None:
    loader = ("django.template.loaders.locmem.Loader", {"row.html": ROW})
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [loader],
                "context_processors": ["django.template.context_processors.request"],
            },
        }
    ]


@pytest.mark.usefixtures("row_template")
async def test_a_template_is_published_line_by_line() -> None:
    await sync_to_async(publish_template)("news", "row.html", {"title": "<hi>"}, event="row")
    await apublish_template("news", "row.html", {"title": "<hi>"}, event="row")
    assert [(event.event, event.text) for event in await published("news")] == [
        ("row", RENDERED)
    ] * 2


@pytest.mark.usefixtures("row_template")
def test_an_event_of_a_template_knows_the_request(rf: RequestFactory, settings: Settings) -> None:
    settings.TEMPLATES[0]["OPTIONS"]["loaders"][0][1]["row.html"] = "{{ request.path }}"
    assert Event.from_template("row.html", request=rf.get("/here/")) == Event("/here/")


async def test_a_template_that_is_none_is_refused_and_nothing_is_published() -> None:
    with pytest.raises(TemplateDoesNotExist):
        await apublish_template("news", "nowhere.html")
    assert await published("news") == []


async def test_on_a_running_loop_the_async_form_is_named_for_templates() -> None:
    with pytest.raises(SynchronousOnlyOperation, match="apublish_template"):
        publish_template("news", "row.html")


def test_every_public_name_is_listed() -> None:
    public = {name for name in vars(django_sse) if not name.startswith("_")}
    modules = {name for name in public if type(vars(django_sse)[name]).__name__ == "module"}
    assert public - modules == set(django_sse.__all__)


@pytest.mark.parametrize(
    "text",
    [gettext_lazy("paid"), mark_safe("paid"), SimpleLazyObject(lambda: "paid")],
    ids=["translation", "safe", "lazy object"],
)
async def test_a_group_and_a_reason_may_be_text_of_any_kind(text: Any) -> None:
    assert (await apublish(text, "hi")).group == "paid"
    await acancel(text, reason=text)
    assert [event.text for event in await published("paid")] == ["hi", '{"reason":"paid"}']


async def test_a_stream_follows_a_group_once_in_whatever_forms_it_is_named() -> None:
    view = EventStreamView.as_view(groups=["paid", Name.PAID, mark_safe("paid")])
    async with open_stream(view) as reader:
        await apublish("paid", "live")
        assert (await reader.next_event()).data == "live"
        assert reader.last_event_id == await aposition("paid")
