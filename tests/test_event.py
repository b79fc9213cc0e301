"""Events on the wire: WHATWG HTML, section 9.2."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import pytest
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from django_sse.event import (
    NO_DATA,
    RESERVED_NAMES,
    Decoder,
    Event,
    decode_block,
    encode_data,
    encode_published,
    refuse_reserved_name,
    with_id,
)
from django_sse.exceptions import InvalidEvent


def decode(*chunks: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


# Encoding


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (Event("hi"), b"data: hi\n\n"),
        (Event(""), b"data: \n\n"),
        (Event(" indented"), b"data:  indented\n\n"),
        (Event("hi", event="greeting"), b"event: greeting\ndata: hi\n\n"),
        (Event("hi", id="7"), b"id: 7\ndata: hi\n\n"),
        (Event("hi", retry=0), b"retry: 0\ndata: hi\n\n"),
        (Event("hi", comment="why"), b": why\ndata: hi\n\n"),
        (Event(retry=3000), b"retry: 3000\n\n"),
        (Event(id="7"), b"id: 7\n\n"),
        (Event(id=""), b"id: \n\n"),
        (Event(comment="two\nlines"), b": two\n: lines\n\n"),
        (
            Event("hi", event="greeting", id="7", retry=3000, comment="why"),
            b": why\nretry: 3000\nid: 7\nevent: greeting\ndata: hi\n\n",
        ),
    ],
)
def test_an_event_is_a_block_of_lines_and_a_blank_line(event: Event, wire: bytes) -> None:
    assert event.encode() == wire


def test_an_event_of_nothing_is_no_bytes() -> None:
    assert Event().encode() == b""


@pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r"])
def test_data_is_split_at(line_end: str) -> None:
    wire = Event(f"one{line_end}two").encode()
    assert wire == b"data: one\ndata: two\n\n"
    assert decode(wire) == [Event("one\ntwo")]


def test_empty_lines_at_both_ends_of_data_survive() -> None:
    assert decode(Event("\n\none\n\n").encode()) == [Event("\n\none\n\n")]


NOT_LINE_ENDS = {
    "VT": "\x0b",
    "FF": "\x0c",
    "FS": "\x1c",
    "NEL": "\x85",
    "LINE SEPARATOR": "\u2028",
    "PARAGRAPH SEPARATOR": "\u2029",
}


@pytest.mark.parametrize("character", NOT_LINE_ENDS.values(), ids=NOT_LINE_ENDS.keys())
def test_it_is_no_line_end(character: str) -> None:
    event = Event(f"one{character}two", event=f"a{character}b", id=f"c{character}d")
    assert event.encode().count(b"\n") == 4
    assert decode(event.encode()) == [event]


def test_a_comment_cannot_start_a_field() -> None:
    assert decode(Event(comment="one\rdata: two\n\ndata: three\n\n").encode()) == []


def test_a_nul_in_data_is_data() -> None:
    assert decode(Event("a\0b").encode()) == [Event("a\0b")]


def test_a_lone_surrogate_is_sent_as_the_replacement_character() -> None:
    event = Event("a\ud800b", event="\udfff", id="\ud800")
    assert decode(event.encode()) == [Event("a\ufffdb", event="\ufffd", id="\ufffd")]


def test_a_pair_of_surrogates_is_sent_as_its_character() -> None:
    assert decode(Event("\ud83d\ude00 \ude00\ud83d").encode()) == [Event("😀 \ufffd\ufffd")]


def test_lone_surrogates_inside_json_are_replaced_as_well() -> None:
    assert Event({"text": "\ud800"}).encode() == 'data: {"text":"\ufffd"}\n\n'.encode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        ([], "[]"),
        ({"title": "hi", "tags": [1, 2.5]}, '{"title":"hi","tags":[1,2.5]}'),
        ({"title": "Grüße 😀"}, '{"title":"Grüße 😀"}'),
        ({"text": "one\r\ntwo"}, '{"text":"one\\r\\ntwo"}'),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), '"2026-01-02T03:04:05Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (timedelta(days=1), '"P1DT00H00M00S"'),
        (Decimal("1.10"), '"1.10"'),
        (
            UUID("12345678-1234-5678-1234-567812345678"),
            '"12345678-1234-5678-1234-567812345678"',
        ),
        ({"title": lazystr("lazy")}, '{"title":"lazy"}'),
    ],
)
def test_data_that_is_not_text_is_sent_as_json(data: Any, text: str) -> None:
    assert Event(data).encode() == f"data: {text}\n\n".encode()
    assert Event(data).text == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('{"already": "JSON"}', '{"already": "JSON"}'),
        (lazystr("lazy"), "lazy"),
        (mark_safe("<b>safe</b>"), "<b>safe</b>"),
    ],
)
def test_text_is_sent_as_it_is(data: Any, text: str) -> None:
    assert Event(data).encode() == f"data: {text}\n\n".encode()


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    "data",
    [
        float("nan"),
        {"value": float("inf")},
        b"bytes",
        bytearray(b"bytes"),
        {"a", "set"},
        object(),
        {("a", "tuple"): 1},
        _circle(),
    ],
)
def test_data_that_json_cannot_express_is_refused(data: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"must be text or something that JSON can express"):
        Event(data).encode()


def test_data_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        Event(_deep()).encode()


@pytest.mark.parametrize("field", ["event", "id"])
@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\r\n"])
def test_a_character_that_would_end_the_line_is_refused(field: str, character: str) -> None:
    with pytest.raises(InvalidEvent, match=rf"Event\.{field} must not contain CR, LF or NUL"):
        Event("data", **cast("Any", {field: f"a{character}data: injected"}))


@pytest.mark.parametrize("field", ["event", "id", "comment"])
@pytest.mark.parametrize("value", [7, b"bytes", ["list"]])
def test_a_field_that_is_not_text_is_refused(field: str, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(InvalidEvent, match=rf"Event\.{field} must be text, not {kind}"):
        Event("data", **{field: value})


@pytest.mark.parametrize("retry", [-1, 1.5, "3000", True, float("nan"), 2**63])
def test_a_retry_that_is_no_whole_number_of_milliseconds_is_refused(retry: Any) -> None:
    with pytest.raises(InvalidEvent, match="whole number of milliseconds"):
        Event("data", retry=retry)


def test_a_retry_that_python_does_not_write_down_is_refused() -> None:
    for retry in (10**5000, -(10**5000)):
        with pytest.raises(InvalidEvent, match="whole number of milliseconds"):
            Event("data", retry=retry)


def test_a_type_without_data_is_refused_because_a_browser_would_fire_nothing() -> None:
    with pytest.raises(InvalidEvent, match="without data fires nothing"):
        Event(event="ping")
    assert decode(Event("", event="ping").encode()) == [Event("", event="ping")]


@pytest.mark.parametrize("name", ["error", "open", "close", "reset"])
def test_a_name_that_means_something_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(InvalidEvent, match="close, error, open, reset belong to"):
        refuse_reserved_name(name)


@pytest.mark.parametrize("name", [None, "", "message", "Error", "closed"])
def test_every_other_name_is_free(name: str | None) -> None:
    assert name not in RESERVED_NAMES
    refuse_reserved_name(name)


def test_an_id_is_put_in_front_of_an_encoded_event() -> None:
    wire = with_id("7", Event("hi", event="greeting").encode())
    assert decode(wire) == [Event("hi", event="greeting", id="7")]


def test_an_id_in_front_of_nothing_is_a_checkpoint() -> None:
    decoder = Decoder()
    assert decoder.feed(with_id("7", b"")) == []
    assert decoder.last_event_id == "7"


def test_the_data_of_an_event_is_read_as_text_and_as_json() -> None:
    [event] = decode(Event({"title": "hi", "at": Decimal("1.5")}).encode())
    assert event.text == '{"title":"hi","at":"1.5"}'
    assert event.json() == {"title": "hi", "at": "1.5"}
    assert Event().text == ""
    with pytest.raises(ValueError, match="Expecting value"):
        Event("no JSON").json()


def test_no_data_differs_from_null() -> None:
    assert Event().data is NO_DATA
    assert (
        repr(Event())
        == "Event(data=NO_DATA, event=None, id=None, retry=None, comment=None, key=None)"
    )
    assert Event(None).encode() == b"data: null\n\n"


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Event("hi").id = "7"  # type: ignore[misc]


# Decoding: the examples of section 9.2.6


def test_example_a_stock_quote_of_three_lines_is_one_event() -> None:
    assert decode(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [Event("YHOO\n+2\n10")]


def test_example_four_blocks_a_comment_an_id_its_reset_and_an_unfinished_one() -> None:
    decoder = Decoder()
    assert decoder.feed(b": test stream\n\ndata: first event\nid: 1\n\n") == [
        Event("first event", id="1")
    ]
    assert decoder.last_event_id == "1"
    assert decoder.feed(b"data:second event\nid\n\n") == [Event("second event")]
    assert decoder.last_event_id == ""
    assert decoder.feed(b"data:  third event\n") == []
    assert decoder.feed(b"\n") == [Event(" third event")]


def test_example_blocks_of_empty_data_are_events_and_the_last_one_is_unfinished() -> None:
    assert decode(b"data\n\ndata\ndata\n\ndata:\n") == [Event(""), Event("\n")]


def test_example_the_space_after_the_colon_is_ignored() -> None:
    assert decode(b"data:test\n\ndata: test\n\n") == [Event("test"), Event("test")]


def test_example_of_section_9_2_1_data_of_two_events_of_different_types() -> None:
    assert decode(b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n") == [
        Event("73857293", event="add"),
        Event("2153", event="remove"),
    ]


# Decoding: the rules of section 9.2.5 and 9.2.6


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r"])
def test_lines_end_at(line_end: bytes) -> None:
    wire = line_end.join([b"event: a", b"data: one", b"data: two", b"", b"data: three", b"", b""])
    expected = [Event("one\ntwo", event="a"), Event("three")]
    assert decode(wire) == expected
    assert decode(*(wire[index : index + 1] for index in range(len(wire)))) == expected


def test_line_ends_may_be_mixed() -> None:
    assert decode(b"data: 1\r\ndata: 2\rdata: 3\n\r\n") == [Event("1\n2\n3")]


def test_a_cr_ends_its_line_at_once_though_an_lf_may_follow() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: hi\r\n\r") == [Event("hi")]
    assert decoder.feed(b"\ndata: ho\n\n") == [Event("ho")]


def test_one_leading_bom_is_ignored() -> None:
    assert decode("\ufeffdata: hi\n\n".encode()) == [Event("hi")]
    assert decode(b"\xef", b"\xbb", b"\xbf", b"data: hi\n\n") == [Event("hi")]


def test_an_lf_in_a_later_chunk_than_the_next_line_is_a_line_end() -> None:
    assert decode(b"data: hi\r", b"data: ho", b"\n\n") == [Event("hi\nho")]


def test_a_second_bom_is_part_of_a_field_name_and_one_in_data_is_data() -> None:
    assert decode("\ufeff\ufeffdata: hi\n\ndata: \ufeff\n\n".encode()) == [Event("\ufeff")]


def test_a_bom_at_the_beginning_of_a_later_chunk_is_kept() -> None:
    assert decode(b"data: hi\n", "\ufeffdata: ho\n\n".encode()) == [Event("hi")]


def test_the_beginning_of_a_bom_that_is_none_is_kept() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\xef\xbb") == []
    # No BOM, so the field is not named `data`.
    assert decoder.feed(b"data: hi\n\ndata: ho\n\n") == [Event("ho")]


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert decode(b"data: a\xff\xe2\x82\n\n") == [Event("a\ufffd\ufffd")]


@pytest.mark.parametrize(
    "line",
    [b": a comment", b":", b"::", b":data: hi", b":\xff", b":\0"],
)
def test_a_line_that_starts_with_a_colon_is_a_comment(line: bytes) -> None:
    assert decode(line + b"\ndata: hi\n\n") == [Event("hi")]


@pytest.mark.parametrize(
    "line",
    [b"Data: x", b"DATA: x", b" data: x", b"data : x", b"dat: x", b"unknown", b"data\xc2\xa0: x"],
)
def test_a_field_that_is_not_known_is_ignored(line: bytes) -> None:
    assert decode(line + b"\n\n") == []
    assert decode(line + b"\ndata: hi\n\n") == [Event("hi")]


def test_only_one_space_is_removed_and_no_other_white_space() -> None:
    assert decode(b"data:  two\ndata:\ttab\ndata: trailing \n\n") == [
        Event(" two\n\ttab\ntrailing ")
    ]


def test_only_the_first_colon_divides_a_line() -> None:
    assert decode(b"data: a: b:c\n\n") == [Event("a: b:c")]


def test_the_last_type_of_a_block_counts() -> None:
    assert decode(b"event: a\nevent: b\ndata: hi\n\n") == [Event("hi", event="b")]


@pytest.mark.parametrize("line", [b"event", b"event:", b"event: "])
def test_an_empty_type_is_none(line: bytes) -> None:
    assert decode(b"event: a\n" + line + b"\ndata: hi\n\n") == [Event("hi")]


def test_a_type_without_data_is_forgotten() -> None:
    assert decode(b"event: a\n\ndata: hi\n\n") == [Event("hi")]


def test_a_nul_in_a_type_is_replaced_since_an_event_cannot_have_it() -> None:
    assert decode(b"event: a\0b\ndata: hi\n\n") == [Event("hi", event="a\ufffdb")]


def test_an_id_stays_until_it_changes() -> None:
    assert decode(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n") == [
        Event("a", id="1"),
        Event("b", id="1"),
        Event("c", id="2"),
    ]


def test_an_id_without_data_moves_the_last_event_id_and_fires_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(b"id: 5\n\n") == []
    assert decoder.last_event_id == "5"
    assert decoder.feed(b"data: hi\n\n") == [Event("hi", id="5")]


def test_an_id_counts_only_from_the_end_of_its_block() -> None:
    decoder = Decoder()
    decoder.feed(b"id: 1\n\nid: 2\ndata: lost with the connection\n")
    assert decoder.last_event_id == "1"


def test_the_last_id_of_a_block_counts() -> None:
    assert decode(b"id: 1\nid: 2\ndata: hi\n\n") == [Event("hi", id="2")]


def test_an_id_with_nul_is_ignored() -> None:
    assert decode(b"id: 1\nid: 2\0\ndata: hi\n\n") == [Event("hi", id="1")]


@pytest.mark.parametrize("line", [b"id", b"id:", b"id: "])
def test_an_empty_id_resets_the_last_event_id(line: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(b"id: 1\ndata: a\n\n" + line + b"\ndata: b\n\n") == [
        Event("a", id="1"),
        Event("b"),
    ]
    assert decoder.last_event_id == ""


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        (b"3000", 3000),
        (b"0", 0),
        (b"007", 7),
        (b"0" * 5000 + b"7", 7),
        (b"1000000000000000000", 10**18),
    ],
)
def test_a_retry_of_digits_is_the_reconnection_time(value: bytes, milliseconds: int) -> None:
    decoder = Decoder()
    # It counts at once, also in a block that is never ended.
    decoder.feed(b"retry: " + value + b"\n")
    assert decoder.reconnection_time == milliseconds


@pytest.mark.parametrize(
    "value",
    [b"", b"-1", b"+1", b"1.5", b"1e3", b"3000 ", b" 3000", b"3s", "٣".encode(), "²".encode()],
)
def test_a_retry_that_is_not_only_digits_is_ignored(value: bytes) -> None:
    decoder = Decoder()
    decoder.feed(b"retry: 5\nretry: " + value + b"\n\n")
    assert decoder.reconnection_time == 5


def test_there_is_no_reconnection_time_before_a_retry() -> None:
    assert Decoder().reconnection_time is None


def test_a_retry_of_any_length_is_survived() -> None:
    assert decode(b"retry: " + b"9" * 100_000 + b"\ndata: hi\n\n") == [Event("hi")]


def test_what_is_not_ended_by_a_blank_line_is_no_event() -> None:
    assert decode(b"data: hi") == []
    assert decode(b"data: hi\n") == []


def test_blank_lines_alone_are_no_events() -> None:
    assert decode(b"\n\n\r\r\r\n\r\n") == []


def test_empty_chunks_change_nothing() -> None:
    assert decode(b"", b"data: hi\r", b"", b"\n\r", b"", b"\n", b"") == [Event("hi")]


def test_a_character_may_be_split_between_chunks() -> None:
    wire = Event("Grüße 😀").encode()
    assert decode(*(wire[index : index + 1] for index in range(len(wire)))) == [Event("Grüße 😀")]


# Properties

text = st.text(st.characters(exclude_categories=()), max_size=20)
lines = st.lists(
    text | st.sampled_from(["\r", "\n", "\r\n", "\0", "\x85", "\u2028", "\ufeff", "data: x", ":"]),
    max_size=6,
).map("".join)
field = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=()), max_size=10)


@st.composite
def events(draw: st.DrawFn) -> Event:
    data = draw(lines | st.just(NO_DATA))
    return Event(
        data,
        event=None if data is NO_DATA else draw(st.none() | field),
        id=draw(st.none() | field),
        retry=draw(st.none() | st.integers(0, 10**9)),
        comment=draw(st.none() | lines),
    )


def split(wire: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    return [wire[start:end] for start, end in pairwise(edges)]


def shown(value: str) -> str:
    """What a browser shows of some text: whole characters only, and LF for every line end."""
    whole = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: chr(0x10000 + (ord(pair[0][0]) - 0xD800) * 0x400 + ord(pair[0][1]) - 0xDC00),
        value,
    )
    return re.sub("\r\n|\r", "\n", re.sub("[\ud800-\udfff]", "\ufffd", whole))


@settings(deadline=None)
@given(events())
def test_what_was_encoded_is_decoded_with_all_that_it_has(event: Event) -> None:
    assume(wire := event.encode())

    def sent(value: str | None) -> str | None:
        return None if value is None else shown(value)

    assert decode_block(wire) == Event(
        NO_DATA if event.data is NO_DATA else sent(event.data),
        event=sent(event.event),
        id=sent(event.id),
        retry=event.retry,
        comment=sent(event.comment),
    )


def outcome(encode: Callable[[], bytes]) -> tuple[bytes, str]:
    try:
        return encode(), ""
    except InvalidEvent as error:
        return b"", str(error)


@settings(deadline=None)
@given(
    lines | st.integers() | st.none() | st.lists(st.floats()) | st.builds(object),
    st.none() | st.text(max_size=5) | st.sampled_from(["close", "ä", "two\nlines"]),
    st.sampled_from([10, 1000]),
)
def test_data_are_encoded_as_an_event_of_them_is(data: Any, name: str | None, most: int) -> None:
    whole, error = outcome(lambda: encode_published(Event(data, event=name), most))
    quick, quick_error = outcome(lambda: encode_data(data, name, most))
    assert quick == whole
    # Where both are wrong, it may complain of the other one first.
    assert bool(quick_error) == bool(error)


@settings(deadline=None)
@given(st.lists(events(), max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_what_was_encoded_is_decoded_again_however_the_bytes_are_split(
    sent: list[Event], cuts: list[int]
) -> None:
    expected = []
    last_id = ""
    for event in sent:
        last_id = last_id if event.id is None else shown(event.id)
        if event.data is not NO_DATA:
            name = shown(event.event) if event.event else None
            expected.append(Event(shown(event.data), event=name, id=last_id or None))
    wire = b"".join(event.encode() for event in sent)
    assert decode(*split(wire, cuts)) == expected


@settings(deadline=None)
@given(events())
def test_the_bytes_of_an_event_have_no_cr_and_no_blank_line_before_their_end(event: Event) -> None:
    wire = event.encode()
    assert b"\r" not in wire
    assert not wire.startswith(b"\n")
    assert wire == b"" or (wire.endswith(b"\n\n") and wire.count(b"\n\n") == 1)


def read_as_specified(stream: bytes) -> tuple[list[Event], str, int | None]:
    """The algorithm of section 9.2.6, word for word, for a stream that is there as a whole."""
    everything = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    found = []
    data, name, id_buffer, last_id, retry = "", "", "", "", None
    # What follows the last line end is no line.
    for line in re.split("\r\n|\n|\r", everything)[:-1]:
        if line == "":
            last_id = id_buffer
            if data != "":
                # Event refuses a NUL in its type; the specification has no view on it.
                name = name.replace("\0", "\ufffd")
                found.append(Event(data[:-1], event=name or None, id=last_id or None))
            data, name = "", ""
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return found, last_id, retry


FIELDS = [b"data", b"event", b"id", b"retry", b": ", b":", b" ", b"\0", b"7", b"x"]
LINE_ENDS = [b"\n", b"\r", b"\r\n", b"\n\n"]
CHARACTERS = [b"\xef\xbb\xbf", b"\xef", b"\xe2\x82", "é".encode(), "\u2028".encode()]
pieces = st.sampled_from([*FIELDS, *LINE_ENDS, *CHARACTERS]) | st.binary(max_size=3)


@settings(deadline=None)
@given(st.lists(st.lists(pieces, max_size=6).map(b"".join), max_size=10))
@example([b"data: x\r", b"data: y", b"\n\n"])
@example([b"data: x\n", b"\xef\xbb\xbfdata: y\n", b"\n"])
def test_any_bytes_in_any_split_are_read_as_specified(chunks: list[bytes]) -> None:
    stream = b"".join(chunks)
    for fed in (chunks, [stream], [stream[index : index + 1] for index in range(len(stream))]):
        decoder = Decoder()
        decoded = [event for chunk in fed for event in decoder.feed(chunk)]
        read = (decoded, decoder.last_event_id, decoder.reconnection_time)
        assert read == read_as_specified(stream)


class Name(str, Enum):  # noqa: UP042  (its str() is its name)
    PAID = "paid"


class Seconds(int, Enum):
    THREE = 3000


def test_a_member_of_an_enum_of_texts_is_its_value() -> None:
    made = Event(Name.PAID, event=Name.PAID, id=Name.PAID, comment=Name.PAID, retry=Seconds.THREE)
    assert made.encode() == (b": paid\nretry: 3000\nid: paid\nevent: paid\ndata: paid\n\n")
    assert Event({Name.PAID: [Name.PAID, Seconds.THREE]}).text == '{"paid":["paid",3000]}'
    assert type(made.event) is str


@pytest.mark.parametrize(
    "text",
    [
        gettext_lazy("paid"),
        mark_safe("paid"),
        SimpleLazyObject(lambda: "paid"),
    ],
    ids=["translation", "safe", "lazy object"],
)
def test_text_of_any_kind_is_sent_as_text(text: Any) -> None:
    made = Event(text, event=text, id=text, comment=text)
    assert made.encode() == b": paid\nid: paid\nevent: paid\ndata: paid\n\n"
    assert made.event == "paid"
    assert type(made.event) is str


def test_a_long_line_in_small_pieces_takes_no_time() -> None:
    """Each piece was put behind all before it anew: half a terabyte in all."""
    decoder = Decoder()
    decoder.feed(b"data: ")
    for _ in range(131_072):
        assert decoder.feed(b"x" * 64) == []
    [event] = decoder.feed(b"\n\n")
    assert event.text == "x" * 8 * 2**20


def test_comments_are_told_to_who_wants_them() -> None:
    comments: list[str] = []
    decoder = Decoder(comments.append)
    assert decoder.feed(b":one\n: two\ndata: hi\n\n:") == [Event("hi")]
    decoder.feed(b"\n")
    assert comments == ["one", "two", ""]
