from dataclasses import fields
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from django_sse.conf import Conf, conf, problems

COUNT = "a whole number above 0"
SECONDS = "a finite number of seconds from 0"
SECONDS_OR_OFF = "a finite number of seconds above 0, or None"
SECONDS_FROM_1 = "a finite number of seconds from 1"
YES_OR_NO = "True or False"
STORE = '"database", "memory", "redis", the dotted path of an EventStore'

NO_NUMBERS = ["1", b"1", [1], {}, True, False, float("nan"), float("inf"), float("-inf"), 1j]
NO_COUNTS = [*NO_NUMBERS, 0, -1, 1.0, 1.5, None]
NO_SECONDS = [*NO_NUMBERS, -1, -0.5, None]
NO_SECONDS_OR_OFF = [*NO_NUMBERS, 0, 0.0, -1, -0.5]
NO_SECONDS_FROM_1 = [*NO_NUMBERS, 0, 0.5, -1, None]
NO_YES_OR_NO: list[Any] = [None, 0, 1, "True", []]
NO_STORES: list[Any] = [
    None,
    1,
    b"memory",
    ["memory"],
    {},
    {"BACKEND": None},
    {"OPTIONS": {}},
    {"BACKEND": "memory", "OPTIONS": None},
    {"BACKEND": "memory", "OPTION": {}},
]

# Each key: its default, what is accepted, what is refused, and what the message then lists.
KEYS: dict[str, tuple[Any, list[Any], list[Any], str]] = {
    "STORE": (
        "database",
        [
            "database",
            "memory",
            "path.to.AStore",
            {"BACKEND": "memory"},
            {"BACKEND": "database", "OPTIONS": {"using": "default"}},
        ],
        NO_STORES,
        STORE,
    ),
    "HISTORY_SIZE": (1000, [1, 10**6], NO_COUNTS, COUNT),
    "HISTORY_AGE": (24 * 3600, [1, 0.5, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "GROUP_TTL": (7 * 24 * 3600, [1, 0.5, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "SYNC_INTERVAL": (None, [1, 0.05, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "HEARTBEAT": (15, [1, 0.5, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "RETRY": (3, [0, 0.5, 60], NO_SECONDS, SECONDS),
    "SEND_TIMEOUT": (30, [1, 0.5, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "BACKLOG_BYTES": (1024 * 1024, [1, 10**9], NO_COUNTS, COUNT),
    "MAX_EVENT_BYTES": (256 * 1024, [1, 10**9], NO_COUNTS, COUNT),
    "MAX_GROUPS": (50, [1, 1000], NO_COUNTS, COUNT),
    "MAX_AGE": (None, [1, 0.5, None], NO_SECONDS_OR_OFF, SECONDS_OR_OFF),
    "CANCEL_TTL": (3600, [1, 1.5], NO_SECONDS_FROM_1, SECONDS_FROM_1),
    "END_WITH_LOGIN": (True, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "RECHECK_INTERVAL": (60, [1, 1.5], NO_SECONDS_FROM_1, SECONDS_FROM_1),
}


def cases(column: int) -> list[Any]:
    return [
        pytest.param(key, value, id=f"{key}-{value!r}")
        for key, row in KEYS.items()
        for value in row[column]
    ]


def test_there_is_a_test_for_every_key() -> None:
    assert [key.name for key in fields(Conf)] == list(KEYS)


def test_every_key_has_its_default(settings: Settings) -> None:
    if hasattr(settings, "DJANGO_SSE"):
        del settings.DJANGO_SSE
    assert conf() == Conf()
    assert {key: getattr(conf(), key) for key in KEYS} == {key: row[0] for key, row in KEYS.items()}


@pytest.mark.parametrize(("key", "value"), cases(1))
def test_it_is_accepted(settings: Settings, key: str, value: Any) -> None:
    settings.DJANGO_SSE = {key: value}
    assert getattr(conf(), key) == value


@pytest.mark.parametrize(("key", "value"), cases(2))
def test_it_is_refused_with_what_would_be_accepted(
    settings: Settings, key: str, value: Any
) -> None:
    settings.DJANGO_SSE = {key: value}
    with pytest.raises(ImproperlyConfigured) as refused:
        conf()
    message = str(refused.value)
    assert message.startswith(f"DJANGO_SSE[{key!r}] must be {KEYS[key][3]}")
    assert message.endswith(f"not {value!r}.")


@pytest.mark.parametrize("key", ["HISTORY", "history_size", "", 7])
def test_an_unknown_key_is_refused_with_those_that_there_are(settings: Settings, key: Any) -> None:
    settings.DJANGO_SSE = {key: 1}
    with pytest.raises(ImproperlyConfigured, match=rf"no key {key!r}\. It accepts: ") as refused:
        conf()
    assert str(refused.value).endswith(f": {', '.join(KEYS)}.")


@pytest.mark.parametrize("value", [None, "memory", [], [("STORE", "memory")]])
def test_a_setting_that_is_no_dict_is_refused(settings: Settings, value: Any) -> None:
    settings.DJANGO_SSE = value
    with pytest.raises(ImproperlyConfigured, match="DJANGO_SSE must be a dict"):
        conf()


def test_all_problems_are_told_at_once() -> None:
    found = list(problems({"RETRY": -1, "UNKNOWN": 1, "MAX_GROUPS": 50, "HEARTBEAT": "15"}))
    assert [problem.split(" ")[0] for problem in found] == [
        "DJANGO_SSE['RETRY']",
        "DJANGO_SSE",
        "DJANGO_SSE['HEARTBEAT']",
    ]


def test_there_is_nothing_wrong_with_an_empty_setting() -> None:
    assert list(problems({})) == []


def test_the_setting_is_read_again_when_a_test_changes_it(settings: Settings) -> None:
    settings.DJANGO_SSE = {"RETRY": 1}
    assert conf().RETRY == 1
    settings.DJANGO_SSE = {"RETRY": 2}
    assert conf().RETRY == 2
    settings.USE_TZ = False
    assert conf().RETRY == 2
