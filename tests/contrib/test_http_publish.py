"""Publishing by HTTP, with the tokens of ``sse_token``."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import Error, OperationalError
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.urls import path
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from django_sse import acancel, apublish
from django_sse.contrib.http_publish import PublishView
from django_sse.contrib.http_publish.bodies import (
    Publication,
    from_form,
    from_json,
    from_ndjson,
    refuse_unpublishable,
)
from django_sse.contrib.http_publish.problems import Problem
from django_sse.contrib.http_publish.tokens import create_token, publisher_with
from django_sse.doorbells.base import Doorbell
from django_sse.doorbells.datagrams import DatagramDoorbell
from django_sse.event import Decoder, Event
from django_sse.exceptions import PartlyPublished
from django_sse.models import PublishRequest, PublishToken
from django_sse.stores import get_store
from django_sse.stores.base import EventStore
from django_sse.testing import published
from tests.contrib.http_publish import urlpatterns
from tests.redis import RedisServer
from tests.streams import News, get, reading
from tests.tenancy import NAMESPACE, entered

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.contrib.http_publish"),
    pytest.mark.usefixtures("everything_ends"),
]

NDJSON = "application/x-ndjson"

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)
_fields = st.dictionaries(
    st.sampled_from(["group", "data", "event", "retry"]), st.just("news") | _values
)
nested_json = (_fields | _values).map(lambda value: json.dumps(value).encode())


@pytest.fixture
async def token(settings: Settings) -> str:
    """A token for the group ``news`` and for groups of orders."""
    return await made("test", "news", "orders-*")


async def made(name: str, *groups: str, **options: Any) -> str:
    return await sync_to_async(create_token)(name, groups, **options)


async def post(
    body: bytes | str,
    token: str = "",
    *,
    path: str = "/publish/",
    content_type: str = "application/json",
    **headers: str,
) -> Any:
    if token:
        headers["Authorization"] = f"Bearer {token}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body.encode() if isinstance(body, str) else body
    return await AsyncClient(enforce_csrf_checks=True).post(
        path, content, content_type=content_type, headers=headers
    )


async def events_in(group: str = "news") -> list[Event]:
    entries = await get_store().aread(group, 0, 10_000)
    return [event for entry in entries for event in Decoder().feed(entry.wire)]


def problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert response["Cache-Control"] == "no-store"
    found: dict[str, Any] = json.loads(response.content)
    assert found["status"] == status
    return found


class Declaring:
    urlpatterns = [
        *urlpatterns,
        path("news/", News.as_view(event_types={"headline": str})),
    ]


def event(**fields: Any) -> str:
    return json.dumps({"group": "news", "data": "hi", **fields})


# What is published


async def test_a_stream_gets_what_a_service_posts_with_the_id_that_it_is_told(token: str) -> None:
    async with reading(await News.as_view()(get())) as stream:
        response = await post(event(event="headline", data={"title": "Grüße"}), token)
        assert response.status_code == 200
        assert response["Content-Type"] == "application/json"
        assert await stream.next_event() == Event(
            '{"title":"Grüße"}', event="headline", id=response.json()["ids"][0]
        )


@pytest.mark.parametrize("data", ["text\nof lines", "", None, 5, [1, {"a": True}], {}])
async def test_text_goes_as_it_is_and_anything_else_as_json(token: str, data: Any) -> None:
    assert (await post(event(data=data), token)).status_code == 200
    [got] = await events_in()
    assert (got.data if isinstance(data, str) else got.json()) == data


async def test_a_thousand_lines_are_published_in_order_and_each_has_its_id(token: str) -> None:
    lines = [event(group=f"orders-{n % 2}", data=n) for n in range(1000)]
    response = await post("\n".join(lines) + "\r\n\n", token, content_type=NDJSON)
    assert response.status_code == 200
    assert len(set(response.json()["ids"])) == 1000
    for n in (0, 1):
        assert [got.json() for got in await events_in(f"orders-{n}")] == [*range(n, 1000, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        event(group="secret"),
        event(event="a\nid: 7"),
        event(data=float("inf")),
        "{",
        "\n".join([event()] * 999),
    ],
)
async def test_all_or_none_is_published(token: str, wrong: str) -> None:
    response = await post(f"{event()}\n{wrong}\n{event()}", token, content_type=NDJSON)
    assert response.status_code in (400, 403, 413)
    assert await events_in() == []


async def test_it_works_over_wsgi_too(token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    response = await sync_to_async(Client().post)(
        "/publish/", event(), content_type="application/json", headers=headers
    )
    assert response.status_code == 200
    assert await events_in() == [Event("hi")]


# What is wrong


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        (b"\xff\xfe", None, "UTF-8"),
        (b" ", None, "not JSON"),
        (b"[]", None, "JSON object"),
        (b'"news"', None, "JSON object"),
        (b"{'group': 1}", None, "not JSON"),
        (b'{"group": "news", "data": NaN}', None, "NaN"),
        (b'{"group": "news", "data": 1e999}', "data", "JSON"),
        (b'{"group": "news", "data": ' + b"1" * 5000 + b"}", None, "not JSON"),
        (b'{"group": "orders-1", "data": 1, "group": "news"}', None, "'group' comes twice"),
        (b'{"group": "news", "data": {"a": 1, "a": 2}}', None, "'a' comes twice"),
        (b"[" * 400_000, None, "deep"),
        (b'{"group": "news", "data": ' + b'{"a":' * 100_000, None, "deep"),
        (b'{"data": 1}', "group", "group name"),
        (b'{"group": null, "data": 1}', "group", "group name"),
        (b'{"group": ["news"], "data": 1}', "group", "group name"),
        (b'{"group": "news\\n", "data": 1}', "group", "group name"),
        (b'{"group": "news\\u0000", "data": 1}', "group", "group name"),
        (b'{"group": "\\ud800", "data": 1}', "group", "group name"),
        (b'{"group": "news", "data": 1, "event": "a\\r\\nid: 7"}', "event", "CR, LF or NUL"),
        (b'{"group": "news", "data": 1, "event": "\\u0000"}', "event", "CR, LF or NUL"),
        (b'{"group": "news", "data": 1, "event": {}}', "event", "text"),
        (b'{"group": "news", "data": 1, "event": "close"}', "event", "'close'"),
        (b'{"group": "news", "event": "headline"}', "data", "without data"),
        (b'{"group": "news"}', "data", "nothing to send"),
        (b'{"group": "news", "data": 1, "retry": "soon"}', "retry", "milliseconds"),
        (b'{"group": "news", "data": 1, "retry": true}', "retry", "milliseconds"),
        (b'{"group": "news", "data": 1, "id": "7"}', "id", "group, data, event, retry"),
    ],
)
async def test_what_is_wrong_is_told(
    token: str, body: bytes, field: str | None, detail: str
) -> None:
    found = problem(await post(body, token), 400)
    assert found.get("field") == field
    assert detail in found["detail"]
    if body.startswith(b"{"):
        lines = b"\n".join([event().encode(), b"", body, event().encode()])
        found = problem(await post(lines, token, content_type=NDJSON), 400)
        assert (found["line"], found.get("field")) == (3, field)
        assert detail in found["detail"]
    assert await events_in() == []


async def test_the_line_of_an_object_of_many_lines_is_told(token: str) -> None:
    body = '{\n  "group": "news",\n  "data": oops\n}'
    assert problem(await post(body, token), 400)["line"] == 3


async def test_a_long_problem_is_short(token: str) -> None:
    response = await post(json.dumps({"x" * 100_000: 1}), token)
    assert problem(response, 400)
    assert len(response.content) < 1000


@pytest.mark.parametrize("body", [b"\n", b"\n\r\n \n"])
async def test_no_line_is_no_request(token: str, body: bytes) -> None:
    assert "no event" in problem(await post(body, token, content_type=NDJSON), 400)["detail"]


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("multipart/form-data; boundary=b", {}),
        ("application/json; charset=latin-1", {}),
        ("application/json", {"Content_Encoding": "gzip"}),
        ("", {}),
    ],
)
async def test_another_content_type_is_415(
    token: str, content_type: str, headers: dict[str, str]
) -> None:
    response = await post(event(), token, content_type=content_type, **headers)
    assert problem(response, 415)
    assert response["Accept"] == "application/json, application/x-ndjson"


async def test_utf_8_may_be_said(token: str) -> None:
    for content_type in ("application/json; charset=UTF-8", 'Application/JSON; charset="utf-8"'):
        assert (await post(event(), token, content_type=content_type)).status_code == 200


async def test_a_large_body_is_413_also_without_a_length(token: str) -> None:
    response = await post(event(data="x" * 200), token, path="/small/")
    assert "200 bytes" in problem(response, 413)["detail"]
    request = AsyncRequestFactory().post(
        "/", b"x" * 201, content_type=NDJSON, headers={"Authorization": f"Bearer {token}"}
    )
    del request.META["CONTENT_LENGTH"]
    view = PublishView.as_view(max_body_bytes=200)
    assert problem(await sync_to_async(view)(request), 413)


async def test_a_body_as_large_as_allowed_is_taken(token: str) -> None:
    body = event().ljust(200)
    assert (await post(body, token, path="/small/")).status_code == 200


async def test_too_many_events_are_413(token: str) -> None:
    line = event(data=1)
    ok = await post("\n".join([line] * 3), token, path="/small/", content_type=NDJSON)
    assert ok.status_code == 200
    response = await post("\n".join([line] * 4), token, path="/small/", content_type=NDJSON)
    assert "4 events" in problem(response, 413)["detail"]


async def test_an_event_that_is_too_large_is_413_and_its_line_is_told(
    token: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"MAX_EVENT_BYTES": 50}
    body = f"{event()}\n{event(data='x' * 60)}"
    found = problem(await post(body, token, content_type=NDJSON), 413)
    assert (found["line"], found["field"]) == (2, "data")
    assert "MAX_EVENT_BYTES" in found["detail"]


async def test_what_the_views_do_not_declare_names_the_field_that_is_wrong(
    token: str, settings: Settings
) -> None:
    settings.DJANGO_SSE = {"CHECK_EVENT_TYPES": True}
    settings.ROOT_URLCONF = Declaring
    unknown = problem(await post(event(event="headlien"), token), 400)
    assert unknown["field"] == "event"
    assert "cannot be published" in unknown["detail"]
    wrong = problem(await post(event(event="headline", data=[]), token), 400)
    assert wrong["field"] == "data"
    of_topic = Publication("news", Event("hi", event="headlien"), "https://example.com", "topic")
    with pytest.raises(Problem) as refused:
        refuse_unpublishable([of_topic])
    assert refused.value.members["field"] == "type"


@pytest.mark.parametrize("method", ["get", "put", "delete", "options", "head"])
async def test_another_method_is_405(token: str, method: str) -> None:
    response = await getattr(AsyncClient(), method)("/publish/")
    assert (response.status_code, response["Allow"]) == (405, "POST")


async def test_a_cancelled_group_is_409_and_its_line_is_told(token: str) -> None:
    await apublish("orders-7", "before")
    await acancel("orders-7")
    body = f"{event()}\n{event(group='orders-7')}"
    for headers in ({}, {"Idempotency_Key": "a"}, {"Idempotency_Key": "a"}):
        response = await post(body, token, content_type=NDJSON, **headers)
        found = problem(response, 409)
        assert (found["line"], found["field"]) == (2, "group")
        assert "orders-7" in found["detail"]
    assert await events_in() == []


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "a"}])
async def test_while_the_store_is_away_it_is_503(
    token: str, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise Error("away")

    with monkeypatch.context() as patch:
        patch.setattr(EventStore, "append", fail)
        patch.setattr(type(get_store()), "_append", fail)
        response = await post(event(), token, **headers)
        assert "away" in problem(response, 503)["detail"]
        assert int(response["Retry-After"]) > 0
    assert (await post(event(), token, **headers)).status_code == 200
    assert await events_in() == [Event("hi")]


async def test_while_the_tokens_cannot_be_read_it_is_503(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise Error("away")

    monkeypatch.setattr("django_sse.contrib.http_publish.tokens.tokens", fail)
    assert problem(await post(event(), token), 503)


# Tokens


async def test_without_a_token_it_is_401(token: str) -> None:
    for headers in ({}, {"Authorization": f"Basic {token}"}, {"Authorization": token}):
        response = await post(event(), **headers)
        assert problem(response, 401)
        # Without a code of an error: RFC 6750, 3.1.
        assert response["WWW-Authenticate"] == 'Bearer realm="publish"'


async def test_a_token_counts_in_its_header_alone(token: str) -> None:
    client = AsyncClient()
    client.cookies["Authorization"] = f"Bearer {token}"
    client.cookies["token"] = token
    response = await client.post(
        f"/publish/?access_token={token}&token={token}", event(), content_type="application/json"
    )
    assert problem(response, 401)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: "x",
        lambda token: token[:-1],
        lambda token: token + "x",
        lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"),
        lambda token: token.replace("sse_", "sse_9"),
        lambda token: "sse_" + "9" * 18 + "_" + "x" * 43,
        lambda token: "sse_" + "9" * 5000 + "_" + "x" * 43,
        lambda token: token + "," + token,
        lambda token: "é" * 43,
        lambda token: "\0",
    ],
)
async def test_a_wrong_token_is_401(token: str, change: Any) -> None:
    response = await post(event(), Authorization=f"Bearer {change(token)}")
    assert problem(response, 401)
    assert response["WWW-Authenticate"] == 'Bearer realm="publish", error="invalid_token"'


async def test_a_token_is_asked_for_before_the_body_is_looked_at() -> None:
    assert problem(await post(b"\xff", content_type="text/plain"), 401)


@pytest.mark.parametrize(
    ("pattern", "covered", "others"),
    [
        ("news", ["news"], ["news2", "New", "ne", "anews"]),
        ("orders-*", ["orders-", "orders-1", "orders-a.b"], ["orders", "xorders-1", "Orders-1"]),
        ("room-?", ["room-1"], ["room-", "room-12"]),
        ("*", ["x", "a.b-c_d"], []),
        ("a*b*c*d*e*f*g*h", ["abcdefgh"], ["a" * 99]),
    ],
)
async def test_a_pattern_covers_groups(pattern: str, covered: list[str], others: list[str]) -> None:
    token = await made("test", pattern)
    for group in covered:
        assert (await post(event(group=group), token)).status_code == 200
    for group in others:
        response = await post(event(group=group), token)
        found = problem(response, 403)
        assert found["field"] == "group"
        assert 'error="insufficient_scope"' in response["WWW-Authenticate"]
        assert await events_in(group) == []


@pytest.mark.parametrize("pattern", ["", "a b", "[ab]", "é*", "x" * 100, "a\nb"])
async def test_a_wrong_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(CommandError, match="is not a pattern for groups"):
        await sync_to_async(call_command)("sse_token", "create", "test", "--group", pattern)
    assert not await PublishToken.objects.aexists()


async def test_only_a_hash_is_kept(token: str) -> None:
    [row] = [each async for each in PublishToken.objects.values()]
    assert token.split("_", 2)[2] not in str(row)


async def test_an_expired_token_is_401() -> None:
    token = await made("test", "news", days=1)
    assert (await post(event(), token)).status_code == 200
    now = (await PublishToken.objects.aget()).created
    await PublishToken.objects.aupdate(expires=now)
    assert problem(await post(event(), token), 401)


async def test_the_last_use_is_written_at_most_once_a_minute(token: str) -> None:
    async def used() -> int | None:
        return (await PublishToken.objects.aget()).used

    assert await used() is None
    await post(event(), token[:-1] + "x")
    assert await used() is None
    await post(event(), token)
    first = await used()
    assert first
    await post(event(), token)
    assert await used() == first
    await PublishToken.objects.aupdate(used=first - 61_000_000)
    await post(event(), token)
    assert (await used() or 0) >= first


async def test_a_token_belongs_to_its_tenant(settings: Settings) -> None:
    settings.DJANGO_SSE = NAMESPACE
    body = event(), "application/json"
    with entered("north"):
        token = await made("test", "news")
        assert await sync_to_async(publisher_with)(token)
        response = await post(event(), token)
        assert response.status_code == 200
    with entered("south"):
        assert problem(await post(event(), token), 401)
        # The name is free there.
        await made("test", "news")
    assert len(await events_in("north/news")) == 1, body


# CSRF, logins and transactions


async def test_neither_csrf_checks_nor_required_logins_are_in_the_way(
    token: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    assert (await post(event(), token)).status_code == 200


async def test_it_is_no_part_of_an_atomic_request(token: str, settings: Settings) -> None:
    settings.DATABASES["default"]["ATOMIC_REQUESTS"] = True
    try:
        response = await post(event(), token)
    finally:
        settings.DATABASES["default"]["ATOMIC_REQUESTS"] = False
    assert response.json()["ids"][0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_body_bytes", 0), ("max_events", None), ("remember_seconds", 0.5), ("max_events", "9")],
)
def test_a_wrong_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"PublishView\.{name} must be "):
        PublishView.as_view(**{name: value})


# Idempotency keys


async def test_the_same_request_is_published_once_and_answered_the_same(token: str) -> None:
    answers = [await post(event(), token, Idempotency_Key='"a-1"') for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["ids"][0]
    assert await events_in() == [Event("hi")]
    # Without a key, or with another one, it is another request.
    await post(event(), token)
    await post(event(), token, Idempotency_Key='"a-2"')
    assert len(await events_in()) == 3


async def test_another_body_with_the_same_key_is_422(token: str) -> None:
    await post(event(), token, Idempotency_Key="a")
    assert problem(await post(event(data="bye"), token, Idempotency_Key="a"), 422)
    response = await post(event(), token, content_type=NDJSON, Idempotency_Key="a")
    assert problem(response, 422)
    assert await events_in() == [Event("hi")]


async def test_each_token_has_keys_of_its_own(token: str) -> None:
    other = await made("other", "news")
    for each in (token, other):
        assert (await post(event(), each, Idempotency_Key="a")).status_code == 200
    assert len(await events_in()) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
async def test_a_wrong_key_is_400(token: str, key: str) -> None:
    assert problem(await post(event(), token, Idempotency_Key=key), 400)


async def test_a_request_that_was_refused_keeps_no_key(token: str) -> None:
    assert problem(await post(event(event="close"), token, Idempotency_Key="a"), 400)
    assert (await post(event(), token, Idempotency_Key="a")).status_code == 200


async def test_a_request_whose_commit_was_not_answered_is_published_once(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection to the database is cut after its COMMIT."""

    def cut(self: EventStore, *args: Any) -> None:
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Doorbell, "ring", cut)
        patch.setattr(DatagramDoorbell, "ring", cut)
        problem(await post(event(), token, Idempotency_Key="a"), 503)
    assert (await post(event(), token, Idempotency_Key="a")).status_code == 200
    assert len(await events_in()) == 1


async def test_a_request_that_failed_can_be_sent_again_at_once(
    token: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}

    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(get_store()), "_append", fail)
        problem(await post(event(), token, Idempotency_Key="a"), 503)
    assert (await post(event(), token, Idempotency_Key="a")).status_code == 200


async def test_what_was_partly_published_is_not_published_again_with_the_same_key(
    token: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}

    def fail(*args: Any, **options: Any) -> None:
        raise PartlyPublished(["orders-1"], ["news"]) from ConnectionError("away")

    body = f"{event()}\n{event(group='orders-1')}\n"
    with monkeypatch.context() as patch:
        patch.setattr(type(get_store()), "_append", fail)
        for headers in ({}, {"Idempotency_Key": "a"}):
            response = await post(body, token, content_type=NDJSON, **headers)
            found = problem(response, 503)
            assert (found["published"], found["failed"]) == (["orders-1"], ["news"])
            # It is not to be sent again as it is.
            assert "Retry-After" not in response
    again = await post(body, token, content_type=NDJSON, Idempotency_Key="a")
    assert "with another key" in problem(again, 422)["detail"]
    assert await events_in("news") == await events_in("orders-1") == []


async def test_a_test_sees_what_was_published_with_a_key(token: str) -> None:
    with published() as events:
        await post(event(), token, Idempotency_Key="a")
    events.assert_published("news", data="hi")


async def test_a_use_that_cannot_be_noted_refuses_nobody(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: Any, **options: Any) -> None:
        raise OperationalError("read-only")

    monkeypatch.setattr("django.db.models.query.QuerySet.update", read_only)
    assert (await post(event(), token)).status_code == 200


async def test_a_key_is_forgotten_after_a_while_and_the_table_is_trimmed(token: str) -> None:
    for n in range(5):
        await post(event(data=n), token, Idempotency_Key=str(n))
    row = await PublishRequest.objects.afirst()
    assert row
    assert row.expires - (await PublishToken.objects.aget()).created > 23 * 3600 * 1_000_000
    await PublishRequest.objects.aupdate(expires=1)
    assert (await post(event(data="again"), token, Idempotency_Key="0")).status_code == 200
    assert await PublishRequest.objects.acount() == 1
    assert len(await events_in()) == 6


# What other stores promise


@pytest.fixture(params=["memory", "redis"])
def other_store(request: pytest.FixtureRequest, settings: Settings) -> None:
    options = {}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        options = {"url": server.url}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": request.param, "OPTIONS": options}}


async def test_other_stores_publish_once_too(
    other_store: None, token: str, everything_ends: None
) -> None:
    first = await post(event(), token, Idempotency_Key="a")
    assert first.json()["ids"][0]
    again = await post(event(), token, Idempotency_Key="a")
    assert again.content == first.content
    assert len(await events_in()) == 1


async def test_a_request_whose_process_died_is_taken_over_after_its_lease(
    other_store: None, token: str, everything_ends: None
) -> None:
    await post(event(), token, Idempotency_Key="a")
    # As it was before it had published.
    row = await PublishRequest.objects.aget()
    await PublishRequest.objects.aupdate(answer="", expires=row.expires)
    response = await post(event(), token, Idempotency_Key="a")
    assert problem(response, 409)
    assert response["Retry-After"] == "1"
    await PublishRequest.objects.aupdate(expires=1)
    assert (await post(event(), token, Idempotency_Key="a")).status_code == 200
    assert len(await events_in()) == 2


# The command


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("sse_token", *arguments, stdout=output, stderr=StringIO())
    return output.getvalue()


def test_a_token_is_made_listed_and_revoked() -> None:
    token = run("create", "billing", "--group", "orders-*", "--group", "news").strip()
    assert publisher_with(token)
    expires = run("create", "crm", "--group", "*", "--expires", "90").strip()
    assert publisher_with(expires)
    listed = run("list").splitlines()
    assert listed[0].startswith("billing: orders-* news, expires never, last used 20")
    assert listed[1].startswith("crm: *, expires 20")
    assert token not in "".join(listed)
    assert run("revoke", "billing") == "Revoked billing.\n"
    assert publisher_with(token) is None
    with pytest.raises(CommandError, match="There is no token billing"):
        run("revoke", "billing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a b", "--group", "x"], "is not a group name"),
        (["create", "a", "--group", "x", "--expires", "0"], "above 0"),
        (["create", "a", "--group", "x", "--expires", "nan"], "above 0"),
        (["create", "a"], "--group"),
        ([], "action"),
    ],
)
def test_a_wrong_command_says_so(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run(*arguments)


def test_a_name_is_given_once() -> None:
    run("create", "billing", "--group", "news")
    with pytest.raises(CommandError, match="There is a token billing"):
        run("create", "billing", "--group", "news")


def test_the_command_lists_the_tokens_of_its_tenant(settings: Settings) -> None:
    settings.DJANGO_SSE = NAMESPACE
    with entered("north"):
        run("create", "billing", "--group", "news")
    with entered("south"):
        assert run("list") == ""
        with pytest.raises(CommandError, match="no token"):
            run("revoke", "billing")
    with entered("north"):
        assert run("list").startswith("billing: ")


def test_the_view_answers_a_plain_request(rf: RequestFactory) -> None:
    assert PublishView.as_view()(rf.post("/")).status_code == 401


# Whatever comes


@given(body=st.one_of(st.binary(), st.text().map(str.encode), nested_json))
@hypothesis_settings(max_examples=300, deadline=None)
def test_whatever_comes_is_events_or_a_problem(body: bytes) -> None:
    def read_and_look(read: Callable[[bytes], list[Publication]]) -> None:
        for each in read(body):
            refuse_unpublishable([each])
            assert len(Decoder().feed(each.event.encode())) <= 1

    for read in (from_json, partial(from_ndjson, most=3), partial(from_form, most=3)):
        with suppress(Problem):
            read_and_look(read)
