import re
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from django_sse import group_name
from django_sse.exceptions import InvalidGroup
from django_sse.groups.names import expand_group, validate_group


class Name(str, Enum):  # noqa: UP042  (its str() is its name)
    PAID = "paid"


class Level(int, Enum):
    HIGH = 3


@pytest.mark.parametrize(
    ("pattern", "kwargs", "group"),
    [
        ("order-{state}", {"state": Name.PAID}, "order-paid"),
        ("level-{level}", {"level": Level.HIGH}, "level-3"),
        ("{name}", {"name": gettext_lazy("news")}, "news"),
        (Name.PAID, {}, "paid"),
        ("news", {}, "news"),
        ("news", {"pk": 7}, "news"),
        ("job-{pk}", {"pk": 7}, "job-7"),
        ("job-{pk}", {"pk": "1-2"}, "job-1-2"),
        ("{group}", {"group": "Any.Name_of-99"}, "Any.Name_of-99"),
        ("{pk:04d}", {"pk": 7}, "0007"),
        ("room-{room}.{user}", {"room": "a-b", "user": 3}, "room-a-b.3"),
        ("{a}--{b}", {"a": 1, "b": 2}, "1--2"),
        ("{a}-{a}", {"a": 1}, "1-1"),
        (
            "job-{pk}",
            {"pk": UUID("12345678-1234-5678-1234-567812345678")},
            "job-12345678-1234-5678-1234-567812345678",
        ),
    ],
)
def test_a_pattern_and_arguments_make_a_group(
    pattern: str, kwargs: dict[str, Any], group: str
) -> None:
    assert expand_group(pattern, kwargs) == group


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a/b", "a:b", "é", "a\n", "\0", "{pk}", "*", "٣", "x" * 100, "\ud800"],
)
def test_arguments_that_make_no_group_name_are_refused(value: str) -> None:
    with pytest.raises(InvalidGroup, match="1 to 99 ASCII letters, digits"):
        expand_group("{group}", {"group": value})


@pytest.mark.parametrize(
    ("pattern", "kwargs", "found"),
    [
        ("{a}-{b}", {"a": "1-2", "b": 3}, "'-'"),
        ("{a}-{b}", {"a": 1, "b": "2-3"}, "'-'"),
        ("{a}-{b}", {"a": 1, "b": -2}, "'-'"),
        ("{a}--{b}", {"a": "1-2", "b": 3}, "'-'"),
        ("{a}.{b}_{c}", {"a": 1, "b": 2, "c": "3._"}, "'._'"),
    ],
)
def test_an_argument_that_contains_a_separator_is_refused(
    pattern: str, kwargs: dict[str, Any], found: str
) -> None:
    with pytest.raises(InvalidGroup, match=rf"contains {found}, which separates the fields"):
        expand_group(pattern, kwargs)


@settings(deadline=None)
@given(
    st.lists(st.text("ab-.", min_size=1, max_size=4), min_size=2, max_size=2),
    st.lists(st.text("ab-.", min_size=1, max_size=4), min_size=2, max_size=2),
    st.sampled_from(["{a}-{b}", "{a}.-{b}", "x-{a}-{b}-x"]),
)
def test_different_arguments_never_make_the_same_group(
    one: list[str], other: list[str], pattern: str
) -> None:
    assume(one != other)
    try:
        group = expand_group(pattern, {"a": one[0], "b": one[1]})
        other_group = expand_group(pattern, {"a": other[0], "b": other[1]})
    except InvalidGroup:
        return
    assert group != other_group


def test_a_field_that_is_no_argument_is_an_error_that_lists_the_arguments() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'id', which is not a keyword .*: pk, slug\."):
        expand_group("job-{id}", {"pk": 7, "slug": "a"})
    with pytest.raises(ImproperlyConfigured, match=r"Its arguments are: none\."):
        expand_group("job-{id}", {})


@pytest.mark.parametrize("pattern", ["job-{}", "job-{0}", "job-{pk.real}", "job-{pk[0]}"])
def test_a_field_is_the_name_of_an_argument_and_nothing_else(pattern: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="not a keyword argument of the URL"):
        expand_group(pattern, {"pk": 7})


def test_fields_with_nothing_between_them_are_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="nothing between them"):
        expand_group("{a}{b}", {"a": 1, "b": 2})


@pytest.mark.parametrize("pattern", ["job-{pk", "job-pk}", "job-{"])
def test_a_broken_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"group pattern .* is broken"):
        expand_group(pattern, {"pk": 7})


# Names of anything


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["news"], "news"),
        (["room", "été 7"], "room._c3_a9t_c3_a9_207"),
        (["room", 7], "room.7"),
        (["room", "7"], "room.7"),
        (["a.b", "c"], "a_2eb.c"),
        (["a_b"], "a_5fb"),
        (["room", "7-staff"], "room.7-staff"),
        (["room", 7, "staff"], "room.7.staff"),
        (["room", -1.5], "room.-1_2e5"),
        (["job", UUID(int=1)], "job.00000000-0000-0000-0000-000000000001"),
        (["order", Name.PAID, Level.HIGH], "order.paid.3"),
        ([gettext_lazy("news")], "news"),
        (["a", ""], "a."),
        (["", ""], "."),
        (["\0\n/"], "_00_0a_2f"),
        (["\ud800"], "_ed_a0_80"),
        (["x" * 99], "x" * 99),
    ],
)
def test_a_group_has_a_name_whatever_it_is_of(parts: list[Any], name: str) -> None:
    assert group_name(*parts) == name


def test_a_long_name_is_cut_and_ends_in_a_digest() -> None:
    name = group_name("room", "x" * 200)
    assert len(name) == 99
    assert name.startswith("room.xxxx")
    assert name[33:35] == "_z"
    assert group_name("room", "x" * 201) not in (name, group_name(name))


@pytest.mark.parametrize(
    "thing",
    [User(pk=1), AnonymousUser(), SimpleLazyObject(lambda: User(pk=1)), Group(name="General")],
    ids=["user", "nobody", "lazy user", "model"],
)
def test_a_thing_is_named_by_its_key_and_not_by_its_text(thing: Any) -> None:
    with pytest.raises(TypeError, match="Give the primary key"):
        group_name("room", thing)


@pytest.mark.parametrize(
    "argument",
    [
        User(pk=1),
        AnonymousUser(),
        SimpleLazyObject(lambda: User(pk=1)),
        Group(name="a"),
        None,
        True,
    ],
    ids=["user", "nobody", "lazy user", "model", "nothing", "yes"],
)
def test_a_pattern_takes_no_argument_whose_text_another_one_may_have(argument: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="primary key in the URL"):
        expand_group("room-{room}", {"room": argument})


@pytest.mark.parametrize("part", [None, True, False, SimpleLazyObject(lambda: None)])
def test_what_is_no_part_of_a_name_is_refused(part: Any) -> None:
    with pytest.raises(TypeError, match="is text, a number or the like"):
        group_name("room", part)


@pytest.mark.parametrize("parts", [[], [""]])
def test_a_name_of_nothing_is_refused(parts: list[str]) -> None:
    with pytest.raises(ValueError, match="needs a part that is not empty"):
        group_name(*parts)


# Many that are about to meet: separators, escapes, the marker of a digest, and long ones.
PARTS = st.lists(
    st.one_of(
        st.text("a_.z-2e5f", max_size=6),
        st.text("a._", min_size=30, max_size=120),
        st.text(max_size=8),
        st.text(st.characters(codec=None), max_size=3),
        st.integers(),
        st.uuids(),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.once
@settings(deadline=None, max_examples=500)
@given(PARTS, PARTS)
def test_different_parts_never_make_the_same_name(one: list[Any], other: list[Any]) -> None:
    assume([*map(str, one)] != [*map(str, other)])
    assume(one != [""])
    assume(other != [""])
    assert validate_group(group_name(*one)) != validate_group(group_name(*other))


@pytest.mark.once
@settings(deadline=None, max_examples=500)
@given(PARTS)
def test_a_short_name_says_what_it_was_made_of(parts: list[Any]) -> None:
    assume(parts != [""])
    name = group_name(*parts)
    assume("_z" not in name)
    read = [
        re.sub(b"_(..)", lambda code: bytes([int(code[1], 16)]), part.encode())
        for part in name.split(".")
    ]
    assert read == [str(part).encode("utf-8", "surrogatepass") for part in parts]
