import string
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from django_sse.groups.position import (
    LOST,
    MAX_LENGTH,
    TERMINAL_MARK,
    GroupPositions,
    format_position,
    group_hash,
    parse_position,
)

NAME_CHARACTERS = string.ascii_letters + string.digits + "-_."
NOW = 1_800_000_000_000_000  # microseconds: where numbers start in 2027

names = st.text(NAME_CHARACTERS, min_size=1, max_size=99)
# Up to the year 5000, with a number for every microsecond until then.
numbers = st.integers(0, 10**17)


@settings(deadline=None)
@given(st.dictionaries(names, numbers, max_size=50))
def test_a_position_that_was_formatted_is_parsed_again(position: dict[str, int]) -> None:
    assert parse_position(format_position(position), position) == position


@settings(deadline=None)
@given(names, numbers, st.booleans())
def test_that_of_one_group_is_the_same_with_its_constant_part_made_once(
    name: str, number: int, of_tenant: bool
) -> None:
    group = f"tenant/{name}" if of_tenant else name
    assert GroupPositions(group).format(number) == format_position({group: number})


@settings(deadline=None)
@given(st.dictionaries(names, numbers, min_size=1, max_size=50))
def test_it_is_printable_ascii_of_at_most_24_bytes_a_group(position: dict[str, int]) -> None:
    sent = format_position(position)
    assert sent.isascii()
    assert sent.isprintable()
    assert " " not in sent
    # With a joining character for every group, and the signature.
    assert len(sent) <= 24 * len(position) + 11


def test_the_position_of_fifty_groups_is_short_enough_to_be_read() -> None:
    position = {f"group-{number}": NOW + number for number in range(50)}
    assert parse_position(format_position(position), position) == position


def test_what_is_lost_is_no_position() -> None:
    with pytest.raises(ValueError, match="-1"):
        format_position({"news": LOST})


def test_the_position_of_no_groups_is_empty() -> None:
    assert format_position({}) == ""
    assert parse_position("", ["news"]) == {}


def test_it_does_not_show_the_name_of_the_group() -> None:
    assert "news" not in format_position({"news": NOW})


def test_it_is_the_same_in_every_process(settings: Settings) -> None:
    # Clients hold it across deploys, so that a change here would reset all of them.
    settings.SECRET_KEY = "a key"
    assert format_position({"news": NOW, "jobs": 0}) == (
        "okF41FGnHYU.hq1ol1dkw0~y9ReU1bOXUo.0~9iezYTfcr84"
    )


# What nobody can make up


def test_another_number_is_not_believed() -> None:
    signed = format_position({"news": NOW})
    assert parse_position(signed, ["news"]) == {"news": NOW}
    entry, mark = signed.split("~")
    for changed in (f"{entry[:-1]}a~{mark}", f"{entry}0~{mark}", f"{entry}~{mark[:-1]}A"):
        assert parse_position(changed, ["news"]) == {"news": LOST}
    other = format_position({"jobs": NOW}).split("~")
    for sent in (f"{entry}~{other[1]}", f"{other[0]}~{mark}", entry, f"{entry}~{entry}"):
        assert parse_position(sent, ["news"]) == {"news": LOST}


def test_the_hash_of_a_group_that_is_named_as_an_entry_is_no_signature() -> None:
    for number in ("0", "1", "hokke53ba0"):
        entry = f"{group_hash('news')}.{number}"
        assert parse_position(f"{entry}~{group_hash(entry)}", ["news"]) == {"news": LOST}


def test_a_group_cannot_be_guessed_by_its_hash(settings: Settings) -> None:
    mark = group_hash("news")
    settings.SECRET_KEY = "another"
    assert group_hash("news") != mark


def test_an_id_of_before_ids_were_signed_is_lost() -> None:
    # Of `news`, as the first versions wrote it.
    assert parse_position("rWYu09ySc9E.hq1ol1dkw0", ["news"]) == {"news": LOST}
    both = "rWYu09ySc9E.hq1ol1dkw0~-9g82CShDtM.0"
    assert parse_position(both, ["news", "jobs"]) == {"news": LOST, "jobs": LOST}


def test_a_key_that_was_changed_counts_as_long_as_it_is_a_fallback(settings: Settings) -> None:
    settings.SECRET_KEY = "before"
    sent = format_position({"news": 7, "jobs": 8})
    settings.SECRET_KEY = "now"
    assert parse_position(sent, ["news"]) == {"news": LOST}
    settings.SECRET_KEY_FALLBACKS = ["long ago", "before"]
    assert parse_position(sent, ["news"]) == {"news": 7}
    assert parse_position(format_position({"news": 9}), ["news"]) == {"news": 9}
    assert parse_position(f"{sent}{TERMINAL_MARK}", ["jobs"]) == {"jobs": 8}


def test_the_mark_of_a_group_is_eleven_characters_and_tells_groups_apart() -> None:
    marks = {group_hash(f"group-{number}") for number in range(1000)}
    assert len(marks) == 1000
    assert {len(mark) for mark in marks} == {11}


def test_names_that_differ_only_in_case_are_different_groups() -> None:
    assert parse_position(format_position({"News": 7}), ["news", "News"]) == {"News": 7}


def test_entries_of_other_groups_are_ignored() -> None:
    sent = format_position({"news": 7, "jobs": 8, "chat": 9})
    assert parse_position(sent, ["jobs", "more"]) == {"jobs": 8}


def test_the_order_of_entries_does_not_matter() -> None:
    sent = format_position({"b": 2, "a": 1})
    assert parse_position(sent, ["a", "b"]) == {"a": 1, "b": 2}


OWNER_PREFIX = group_hash("news")


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "~",
        "~~~",
        "7",
        "news",
        OWNER_PREFIX,
        f"{OWNER_PREFIX}.",
        f"{OWNER_PREFIX}.-1",
        f"{OWNER_PREFIX}.+1",
        f"{OWNER_PREFIX}.A",
        f"{OWNER_PREFIX}. 1",
        f"{OWNER_PREFIX}.٣",
        f"{OWNER_PREFIX[1:]}.1",
        OWNER_PREFIX + "\0.1",
        "\ud800",
    ],
)
def test_what_does_not_look_like_a_position_is_none(sent: str) -> None:
    assert parse_position(sent, ["news", "jobs"]) == {}


@pytest.mark.parametrize(
    "entry",
    [
        f"{OWNER_PREFIX}.1",
        f"{OWNER_PREFIX}.1 ",
        f"{OWNER_PREFIX}.1\n",
        f"{OWNER_PREFIX}.1_0",
        f"{OWNER_PREFIX}.1.1",
        f"{OWNER_PREFIX}.{'z' * 12}",
        f" {OWNER_PREFIX}.1",
        f"x{OWNER_PREFIX}.1",
        "\ud800",
    ],
)
def test_what_was_added_to_a_position_makes_it_lost(entry: str) -> None:
    good = format_position({"jobs": 8})
    for sent in (f"{entry}~{good}", f"{good}~{entry}", f"{good}{entry}"):
        assert parse_position(sent, ["news", "jobs"]) == {"news": LOST, "jobs": LOST}


def test_the_terminal_mark_is_no_position() -> None:
    assert parse_position(TERMINAL_MARK, ["news", "end", "~end"]) == {}


def test_what_is_too_long_is_not_read() -> None:
    position = {f"group-{number}": 10**17 for number in range(700)}
    assert len(sent := format_position(position)) > MAX_LENGTH
    assert parse_position(sent, ["group-0"]) == {}


def test_the_largest_number_that_is_read_fits_a_database() -> None:
    largest = int("z" * 11, 36)
    assert largest < 2**63
    assert parse_position(format_position({"news": largest}), ["news"]) == {"news": largest}
    assert parse_position(format_position({"news": largest + 1}), ["news"]) == {}


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=()))
    | st.lists(
        st.sampled_from([OWNER_PREFIX, group_hash("jobs"), ".", "~", "1", "zz", TERMINAL_MARK, "é"])
        | st.text(max_size=3)
    ).map("".join),
    st.lists(names),
)
@example("~" * 20_000, ["news"])
@example(f"{OWNER_PREFIX}.{'9' * 10_000}", ["news"])
def test_whatever_a_client_sends_is_parsed_without_an_error(sent: str, groups: list[str]) -> None:
    groups = [*groups, "news", "jobs"]
    position = parse_position(sent, groups)
    assert position.keys() <= set(groups)
    assert set(position.values()) <= {LOST}


def calls_to_parse(sent: str) -> int:
    """Return how many functions are called, built-in ones too: what it costs on any machine."""
    calls = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        parse_position(sent, ["news", "jobs"])
    finally:
        sys.setprofile(before)
    return calls


def position_of_others(length: int) -> str:
    """Return a position of groups that nobody asks for, about as long as that."""
    each = len(format_position({"other-0": NOW, "other-1": NOW})) // 2
    return format_position({f"other-{number}": NOW for number in range(length // each)})


@pytest.mark.parametrize(
    "sent",
    [position_of_others(2**20), format_position({"news": NOW}) * 2**16, "~" * 2**20, "9" * 2**20],
    ids=["others", "own", "empty", "digits"],
)
def test_what_is_too_long_costs_nothing_however_long_it_is(sent: str) -> None:
    assert calls_to_parse(sent) == calls_to_parse(sent[: MAX_LENGTH + 1]) < 100


@pytest.mark.parametrize(
    "sent",
    [
        position_of_others(MAX_LENGTH - 200),
        f"{format_position({'news': NOW})}~" * 500,
        "~" * MAX_LENGTH,
        "." * MAX_LENGTH,
        "9" * MAX_LENGTH,
    ],
    ids=["others", "own", "empty", "dots", "digits"],
)
def test_what_is_as_long_as_it_may_be_costs_a_few_calls_a_character_at_the_most(sent: str) -> None:
    assert calls_to_parse(sent) < 5 * MAX_LENGTH
