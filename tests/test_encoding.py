"""What is not text goes as the JSON of the encoder that the project has chosen."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from math import inf, nan
from typing import Any, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from pydantic.dataclasses import dataclass as pydantic_dataclass

from django_sse.event import Decoder, Event
from django_sse.exceptions import InvalidEvent
from django_sse.groups.entries import closing_wire
from tests.live.servers import ROOT

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Place:
    name: str
    at: datetime = AT
    tags: list[str] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Point:
    x: int
    place: Place | None = None


@pydantic_dataclass
class Checked:
    x: int = pydantic.Field(serialization_alias="theX")


@attrs.define
class Defined:
    x: int
    place: Place


class Model(pydantic.BaseModel):
    x: int
    at: datetime = AT
    price: Decimal = Decimal("1.10")


class Renamed(pydantic.BaseModel):
    first_name: str = pydantic.Field(serialization_alias="firstName")


class Names(pydantic.RootModel[list[str]]):
    pass


class Struct(msgspec.Struct, rename="camel", tag=True):
    first_name: str
    at: datetime = AT
    inner: Any = None


class Typed(TypedDict):
    x: int


PLACE = {"name": "here", "at": "2026-01-02T03:04:05Z", "tags": []}

OBJECTS: list[tuple[Any, Any]] = [
    (Place("here"), PLACE),
    (Point(1, Place("here")), {"x": 1, "place": PLACE}),
    (Checked(x=1), {"theX": 1}),
    (Defined(1, Place("here")), {"x": 1, "place": PLACE}),
    (Model(x=1), {"x": 1, "at": "2026-01-02T03:04:05Z", "price": "1.10"}),
    (Renamed(first_name="Ada"), {"firstName": "Ada"}),
    (Names(["a", "b"]), ["a", "b"]),
    (
        Struct("Ada", inner=Model(x=1)),
        {
            "type": "Struct",
            "firstName": "Ada",
            "at": "2026-01-02T03:04:05Z",
            "inner": {"x": 1, "at": "2026-01-02T03:04:05Z", "price": "1.10"},
        },
    ),
    (Typed(x=1), {"x": 1}),
]
KINDS = [type(given).__name__ for given, _ in OBJECTS]


@pytest.mark.parametrize(("given", "sent"), OBJECTS, ids=KINDS)
@pytest.mark.parametrize("encoder", [None, "rest_framework.utils.encoders.JSONEncoder"])
def test_an_object_with_declared_fields_is_sent_as_an_object(
    given: Any, sent: Any, encoder: str | None
) -> None:
    with override_settings(DJANGO_SSE={"ENCODER": encoder} if encoder else {}):
        assert Event(given).json() == sent
        assert Event({"all": [given]}).json() == {"all": [sent]}


@pytest.mark.parametrize("given", [Place, Model, Struct, object()])
def test_what_has_no_json_is_refused(given: Any) -> None:
    with pytest.raises(InvalidEvent, match="something that JSON can express"):
        Event(given).encode()


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_no_object_hides_a_number_that_browsers_do_not_read(number: float) -> None:
    for given in (Place("a", tags=[number]), Struct("a", inner=number)):  # type: ignore[list-item]
        with pytest.raises(InvalidEvent):
            Event(given).encode()


# Encoders of the project


class Verbose(json.JSONEncoder):
    """It has indents, and dates of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.indent = 1

    def default(self, o: Any) -> Any:
        return o.year if isinstance(o, datetime) else super().default(o)


to_msgspec = msgspec.json.Encoder(enc_hook=str).encode


def latin(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("latin-1")


def in_lines(value: Any) -> str:
    return json.dumps(value, indent=1)


def as_view(value: Any) -> memoryview:
    return memoryview(in_lines(value).encode())


def as_object(value: Any) -> Any:
    return {"x": value}


ENCODERS = [
    "django.core.serializers.json.DjangoJSONEncoder",
    "rest_framework.utils.encoders.JSONEncoder",
    f"{__name__}.Verbose",
    f"{__name__}.in_lines",
    f"{__name__}.as_view",
    f"{__name__}.to_msgspec",
    "json.dumps",
    "orjson.dumps",
    "msgspec.json.encode",
    "pydantic_core.to_json",
]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "data", [None, {"a": [1, 2.5, True]}, "NaN", ["NaN", "\r\n\u2028"], {"text": "Grüße 😀\n\n"}]
)
def test_what_an_encoder_returns_is_one_event(encoder: str, data: Any) -> None:
    with override_settings(DJANGO_SSE={"ENCODER": encoder}):
        wire = Event([data], event="news").encode()
    [received] = Decoder().feed(wire)
    assert received.event == "news"
    assert received.json() == [data]


@pytest.mark.parametrize(
    ("encoder", "text"),
    [
        (ENCODERS[0], '"2026-01-02T03:04:05Z"'),
        (f"{__name__}.Verbose", "2026"),
        ("orjson.dumps", '"2026-01-02T03:04:05+00:00"'),
    ],
)
def test_the_encoder_decides_what_a_date_is(encoder: str, text: str) -> None:
    with override_settings(DJANGO_SSE={"ENCODER": encoder}):
        assert Event(AT).text == text


@pytest.mark.parametrize("encoder", ["json.dumps", "pydantic_core.to_json", *ENCODERS[:3]])
@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_an_encoder_cannot_send_what_browsers_do_not_read(encoder: str, number: float) -> None:
    with override_settings(DJANGO_SSE={"ENCODER": encoder}), pytest.raises(InvalidEvent):
        Event({"a": number}).encode()


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        (f"{__name__}.latin", "latin returned bytes that are not UTF-8"),
        (f"{__name__}.as_object", "as_object returned dict, not text or bytes"),
        ("json.dumps", "not JSON serializable"),
        ("orjson.dumps", "not JSON serializable"),
        ("msgspec.json.encode", "unsupported"),
        ("pydantic_core.to_json", "Unable to serialize"),
    ],
)
def test_the_error_says_what_is_wrong_with_what_was_encoded(encoder: str, says: str) -> None:
    data = "é" if encoder.startswith(__name__) else object()
    with (
        override_settings(DJANGO_SSE={"ENCODER": encoder}),
        pytest.raises(InvalidEvent, match=says),
    ):
        Event([data]).encode()


def test_text_is_sent_as_it_is_whatever_the_encoder() -> None:
    with override_settings(DJANGO_SSE={"ENCODER": "orjson.dumps"}):
        assert Event("hi").encode() == b"data: hi\n\n"


def test_an_encoder_that_is_none_is_named() -> None:
    with (
        override_settings(DJANGO_SSE={"ENCODER": "decimal.Decimal"}),
        pytest.raises(ImproperlyConfigured, match="decimal"),
    ):
        Event({}).encode()


def broken(value: Any) -> str:
    raise OverflowError


def test_what_the_library_says_is_for_no_encoder_of_the_project() -> None:
    with override_settings(DJANGO_SSE={"ENCODER": f"{__name__}.broken"}):
        assert closing_wire("over") == b'event: close\ndata: {"reason":"over"}\n\n'


def test_an_event_is_encoded_before_the_apps_are_loaded() -> None:
    program = "from django_sse.event import Event; print(Event({'a': 1}).text)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == '{"a":1}\n', run.stderr
