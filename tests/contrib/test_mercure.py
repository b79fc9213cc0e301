"""The updates of Mercure: JWTs, topics, and what a stream gets."""

import hmac
import json
import time
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, RequestFactory
from pytest_django import Settings

from django_sse import group_name
from django_sse.contrib.http_publish import MercurePublishView
from django_sse.contrib.http_publish.mercure import matches
from django_sse.event import Decoder, Event
from django_sse.stores import get_store
from tests.contrib.http_publish import BOOK, SECRET, Book
from tests.streams import get, reading
from tests.tenancy import NAMESPACE, entered

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.contrib.http_publish"),
    pytest.mark.usefixtures("everything_ends"),
]

FORM = "application/x-www-form-urlencoded"
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = _RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = _RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(*selectors: Any, key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    claims = {"mercure": {"publish": list(selectors)}, **claims}
    return jwt.encode(claims, key, algorithm)


async def post(fields: Any, token: str, **headers: str) -> Any:
    body = fields if isinstance(fields, bytes | str) else urlencode(fields)
    headers = {"Authorization": f"Bearer {token}", **headers}
    return await AsyncClient(enforce_csrf_checks=True).post(
        "/mercure/", body, content_type=FORM, headers=headers
    )


async def events_of(topic: str) -> list[Event]:
    entries = await get_store().aread(group_name(topic), 0, 100)
    return [event for entry in entries for event in Decoder().feed(entry.wire)]


async def test_a_stream_of_the_topics_group_gets_the_update() -> None:
    async with reading(await Book.as_view()(get())) as stream:
        fields = {"topic": BOOK, "data": "{}\nof lines", "type": "changed", "private": "on"}
        response = await post(fields, signed(BOOK))
        assert response.status_code == 200
        assert response["Content-Type"] == "text/plain; charset=utf-8"
        event = await stream.next_event()
        assert event == Event("{}\nof lines", event="changed", id=response.content.decode())


async def test_each_topic_gets_it_and_the_id_is_of_the_first() -> None:
    topics = [BOOK, "bar", "https://example.com/é/" + "x" * 200]
    body = urlencode([("topic", topic) for topic in [*topics, BOOK]])
    assert (await post(body, signed("*"))).status_code == 200
    for topic in topics:
        # Without data there is an empty text, as Mercure has it.
        assert await events_of(topic) == [Event("")]


async def test_the_publishers_id_is_not_used() -> None:
    response = await post({"topic": BOOK, "data": "hi", "id": "urn:uuid:7"}, signed("*"))
    assert response.status_code == 200
    assert b"urn" not in response.content


async def test_it_is_published_once_with_an_idempotency_key() -> None:
    headers = {"Idempotency-Key": "a"}
    # A JWT that was made anew is the same publisher's.
    tokens = [signed("*", sub="shop", iat=iat) for iat in (1, 2)]
    answers = [await post({"topic": BOOK}, token, **headers) for token in tokens]
    assert answers[0].content == answers[1].content
    assert len(await events_of(BOOK)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("x", "topic"),
        ("data=hi", "topic"),
        ("topic=", "topic"),
        ("topic=a&topic=", "topic"),
        ("topic=a%00", "topic"),
        ("topic=a%0D%0Aid:7", "topic"),
        ("topic=a&type=a%0Aid:7", "type"),
        ("topic=a&type=%00", "type"),
        ("topic=a&type=close", "type"),
        ("topic=a&retry=soon", "retry"),
        ("topic=a&retry=-1", "retry"),
        ("topic=a&retry=%C2%B2", "retry"),
        ("topic=a&retry=" + "9" * 5000, "retry"),
        ("topic=a&retry=" + "9" * 19, "retry"),
        ("topic=a&retry=", "retry"),
        ("topic=a&data=1&data=2", "data"),
        ("topic=a&data=%ff", None),
        (b"topic=a&data=\xff", None),
    ],
)
async def test_what_is_wrong_is_told(body: bytes | str, field: str | None) -> None:
    response = await post(body, signed("*"))
    assert response.status_code == 400
    assert json.loads(response.content).get("field") == field
    assert await events_of("a") == []


async def test_too_many_topics_are_413() -> None:
    body = "&".join(f"topic={n}" for n in range(2000))
    assert (await post(body, signed("*"))).status_code == 413


async def test_json_is_415() -> None:
    response = await AsyncClient().post(
        "/mercure/",
        "{}",
        content_type="application/json",
        headers={"Authorization": f"Bearer {signed('*')}"},
    )
    assert (response.status_code, response["Accept"]) == (415, FORM)


@pytest.mark.parametrize("selectors", [[], ["other"], [BOOK + "2"], ["https://example.com/{id}"]])
async def test_a_topic_that_no_selector_matches_is_403(selectors: list[str]) -> None:
    body = urlencode([("topic", "other"), ("topic", BOOK)])
    response = await post(body, signed(*selectors))
    assert response.status_code == 403
    assert await events_of("other") == []


@pytest.mark.parametrize(
    ("selector", "topic", "is_match"),
    [
        ("*", BOOK, True),
        (BOOK, BOOK, True),
        (BOOK, BOOK.upper(), False),
        ("https://example.com/books/{id}", BOOK, True),
        ("https://example.com/books/{id}", BOOK + "/pages", False),
        ("https://example.com/books/{id}", "https://example.com/books/", True),
        ("https://example.com/books/{id}", "https://example.com/books/a%20b", True),
        ("https://example.com/books/{id}", "https://example.com/books/%zz", False),
        ("https://example.com/books/{id}", BOOK + "\n", False),
        ("https://example.com/{kind}/{id}.json", "https://example.com/books/1.json", True),
        ("https://example.com/{kind}/{id}.json", "https://example.com/books/1.json.json", True),
        ("https://example.com/{kind}/{id}.json", "https://example.com/books/x/1.json", False),
        ("{a}x", "axbx", True),
        ("{a}-{b}", "1-2-3", True),
        ("{a}{b}{c}{d}{e}{f}{g}!", "a" * 100_000, False),
        ("{a}b{c}b{d}b{e}b{f}b{g}!", "ab" * 50_000, False),
        ("https://example.com{+path}", BOOK, False),
        ("https://example.com/{?query}", "https://example.com/{?query}", True),
        ("{", "x", False),
        ("a.c", "abc", False),
        ("books/*", "books/1", False),
        ("", "x", False),
    ],
)
def test_a_selector_matches(selector: str, topic: str, is_match: bool) -> None:
    assert matches(selector, topic) is is_match


_UNSIGNED = jwt.encode({"mercure": {"publish": ["*"]}}, None, "none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "..",
        "\0",
        "é",
        _UNSIGNED,
        signed("*")[:-2],
        signed("*", key="another secret, which has 32 bytes too"),
        signed("*", algorithm="HS512", key=SECRET * 2),
        signed("*", exp=time.time() - 1),
        signed("*", nbf=time.time() + 86_400),
        signed("*", aud="another hub"),
        signed("*", exp="soon"),
        signed(mercure=None),
        signed(mercure={}),
        signed(mercure={"publish": "*"}),
        signed(mercure={"publish": [7]}),
        signed(mercure={"subscribe": ["*"]}),
        signed(mercure=["*"]),
        jwt.encode({}, SECRET, "HS256"),
        signed("*", key=PRIVATE, algorithm="RS256"),
        jwt.utils.base64url_encode(b"[" * 20_000).decode() + ".e30.x",
        jwt.utils.base64url_encode(b'{"alg":"HS256","crit":["x"],"x":1}').decode() + ".e30.x",
    ],
)
async def test_a_jwt_that_does_not_count_is_401(token: str) -> None:
    response = await post({"topic": BOOK}, token)
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="publish", error="invalid_token"'
    assert await events_of(BOOK) == []


async def test_a_cookie_does_not_count() -> None:
    client = AsyncClient()
    client.cookies["mercureAuthorization"] = signed("*")
    response = await client.post("/mercure/", f"topic={quote(BOOK)}", content_type=FORM)
    assert response.status_code == 401


def test_public_keys_verify_rs256_and_nothing_else(rf: RequestFactory) -> None:
    view = MercurePublishView.as_view(jwt_keys=[PUBLIC], jwt_algorithm="RS256")

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        request = rf.post("/", "topic=a", content_type=FORM, headers=headers)
        return int(view(request).status_code)

    assert status(signed("*", key=PRIVATE, algorithm="RS256")) == 200
    # The confusion of algorithms: the public key is no secret.
    head = jwt.utils.base64url_encode(b'{"alg":"HS256","typ":"JWT"}')
    body = jwt.utils.base64url_encode(b'{"mercure":{"publish":["*"]}}')
    mac = hmac.new(PUBLIC, head + b"." + body, sha256).digest()
    forged = b".".join([head, body, jwt.utils.base64url_encode(mac)]).decode()
    assert status(forged) == 401
    assert status(_UNSIGNED) == 401


def test_keys_can_be_changed_one_after_the_other(rf: RequestFactory) -> None:
    old, new = SECRET, SECRET[::-1]
    view = MercurePublishView.as_view(jwt_keys=[new, old])
    for key in (old, new):
        headers = {"Authorization": f"Bearer {signed('*', key=key)}"}
        request = rf.post("/", "topic=a", content_type=FORM, headers=headers)
        assert view(request).status_code == 200


def test_with_tenants_a_jwt_is_for_one(settings: Settings, rf: RequestFactory) -> None:
    settings.DJANGO_SSE = NAMESPACE
    view = MercurePublishView.as_view(jwt_keys=[SECRET])

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        with entered("north"):
            request = rf.post("/", "topic=a", content_type=FORM, headers=headers)
            return int(view(request).status_code)

    assert status(signed("*", aud="north")) == 200
    assert status(signed("*", aud="south")) == 401
    assert status(signed("*")) == 401


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has to be a list of the keys"),
        ({"jwt_keys": []}, "has to be a list of the keys"),
        ({"jwt_keys": SECRET}, "has to be a list of the keys"),
        ({"jwt_keys": ["short"]}, "at least 32 random bytes"),
        ({"jwt_keys": ["!ChangeThisMercureHubJWTSecretKey!"]}, "can be guessed"),
        ({"jwt_keys": [PUBLIC]}, "none for HS256"),
        ({"jwt_keys": [SECRET], "jwt_algorithm": "RS256"}, "none for RS256"),
        ({"jwt_keys": [SECRET], "jwt_algorithm": "none"}, 'must be "HS256" or "RS256"'),
    ],
)
def test_wrong_keys_are_refused_and_not_shown(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message) as error:
        MercurePublishView.as_view(**values)
    assert SECRET not in str(error.value)
