from dataclasses import fields
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from django_sse.conf import Conf, conf, problems

COUNT = "a whole number above 0"
COUNT_OR_OFF = "a whole number above 0, or None"
SECONDS_OR_OFF = "a finite number of seconds, or 0 for off"
SECONDS_OR_CHOSEN = "a finite number of seconds, or 0 to have it chosen"
MILLISECONDS = (
    "a whole number of milliseconds from 100 to 2147483647 (less looks like seconds: 3 seconds are "
    "3000)"
)
ORIGINS = 'a list of origins such as "https://app.example.com"'
PROXIES = 'a list of addresses and networks such as "10.0.0.0/8"'
SECONDS_FROM_1 = "a finite number of seconds from 1 (it cannot be off)"
SECONDS_FROM_1_OR_OFF = "a finite number of seconds from 1, or 0 for off"
YES_OR_NO = "True or False"
STORE = '"database", "memory", "redis", the dotted path of an EventStore'
FUNCTION_OR_OFF = "the dotted path of a function, or None"
ENCODER = "the dotted path of a subclass of json.JSONEncoder or of a function that encodes a value"

NO_NUMBERS = ["1", b"1", [1], {}, True, False, float("nan"), float("inf"), float("-inf"), 1j]
NO_COUNTS = [*NO_NUMBERS, 0, -1, 1.0, 1.5, None]
NO_COUNTS_OR_OFF = [*NO_NUMBERS, 0, -1, 1.0, 1.5]
NO_SECONDS = [*NO_NUMBERS, -1, -0.5, None]
NO_MILLISECONDS = [*NO_COUNTS, 3, 99, 3000.0, 0.5, 2**31]
NO_ORIGINS: list[Any] = [
    None,
    "https://app.example.com",
    {"https://app.example.com"},
    ["app.example.com"],
    ["//app.example.com"],
    ["https://app.example.com/"],
    ["https://app.example.com/path"],
    ["https://user@app.example.com"],
    ["https://app.example.com?"],
    ["https://app.example.com\n"],
    # Browsers leave these out, so they would never match.
    ["https://app.example.com:443"],
    ["http://localhost:80"],
    ["https://"],
    ["https://*.example.com"],
    ["https://münchen.example"],
    ["null"],
    [b"https://app.example.com"],
    ["*", "https://app.example.com"],
]
NO_SECONDS_FROM_1_OR_OFF = [*NO_NUMBERS, 0.5, -1, None]
NO_SECONDS_FROM_1 = [*NO_SECONDS_FROM_1_OR_OFF, 0]
NO_YES_OR_NO: list[Any] = [None, 0, 1, "True", []]
NO_FUNCTIONS: list[Any] = [len, b"mysite.tenants.current", "mysite/tenants", "mysite.", "", 1, []]
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
    "HISTORY_AGE": (24 * 3600, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "MAX_KEYS": (1000, [1, 10**6], NO_COUNTS, COUNT),
    "GROUP_TTL": (7 * 24 * 3600, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "SYNC_INTERVAL": (0, [1, 0.05, 0], NO_SECONDS, SECONDS_OR_CHOSEN),
    "HEARTBEAT": (15, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "RETRY": (3000, [100, 60_000, 2**31 - 1], NO_MILLISECONDS, MILLISECONDS),
    "SEND_TIMEOUT": (30, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "BACKLOG_BYTES": (1024 * 1024, [1, 10**9], NO_COUNTS, COUNT),
    "COMPRESS": (False, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "MAX_EVENT_BYTES": (256 * 1024, [1, 10**9], NO_COUNTS, COUNT),
    "ENCODER": (
        "django.core.serializers.json.DjangoJSONEncoder",
        ["rest_framework.utils.encoders.JSONEncoder", "orjson.dumps"],
        [*NO_FUNCTIONS, None],
        ENCODER,
    ),
    "CHECK_EVENT_TYPES": (False, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "MAX_GROUPS": (50, [1, 1000], NO_COUNTS, COUNT),
    "ALLOWED_ORIGINS": (
        (),
        [
            [],
            ["*"],
            ("https://app.example.com", "http://localhost:3000"),
            ["https://App.Example.com", "http://[::1]:8000", "http://127.0.0.1"],
            ["https://app.example.com:4430", "http://app.example.com:443", "https://a.example:80"],
            ["moz-extension://5a9d2f10-0c4e-4b3a-9c37-0a1b2c3d4e5f", "capacitor://localhost"],
        ],
        NO_ORIGINS,
        ORIGINS,
    ),
    "ALLOW_CREDENTIALS": (False, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "REFUSE_SOFTLY": (True, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "MAX_STREAMS": (None, [1, 10**6, None], NO_COUNTS_OR_OFF, COUNT_OR_OFF),
    "MAX_STREAMS_PER_USER": (None, [1, 10**6, None], NO_COUNTS_OR_OFF, COUNT_OR_OFF),
    "MAX_STREAMS_PER_ADDRESS": (None, [1, 10**6, None], NO_COUNTS_OR_OFF, COUNT_OR_OFF),
    "MAX_STREAMS_PER_GROUP": (None, [1, 10**6, None], NO_COUNTS_OR_OFF, COUNT_OR_OFF),
    "MAX_OPEN_GROUPS": (None, [1, 10**6, None], NO_COUNTS_OR_OFF, COUNT_OR_OFF),
    "TRUSTED_PROXIES": (
        (),
        [[], ["10.0.0.0/8"], ("127.0.0.1", "::1", "fd00::/8"), ["unix:"]],
        [
            None,
            "10.0.0.0/8",
            ["10.0.0.1/8"],
            ["10.0.0"],
            ["proxy.example"],
            ["127.0.0.1:80"],
            ["unix"],
            [""],
            [2130706433],
            [b"127.0.0.1"],
        ],
        PROXIES,
    ),
    "MAX_AGE": (0, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "CANCEL_TTL": (3600, [1, 1.5], NO_SECONDS_FROM_1, SECONDS_FROM_1),
    "END_WITH_LOGIN": (True, [True, False], NO_YES_OR_NO, YES_OR_NO),
    "RECHECK_INTERVAL": (60, [1, 1.5, 0], NO_SECONDS_FROM_1_OR_OFF, SECONDS_FROM_1_OR_OFF),
    "PRODUCER_TTL": (15, [1, 2.5], NO_SECONDS_FROM_1, SECONDS_FROM_1),
    "PRODUCER_GRACE": (5, [0, 0.5, 60], NO_SECONDS, SECONDS_OR_OFF),
    "PRODUCER_KEEP": (3600, [1, 86400], NO_SECONDS_FROM_1, SECONDS_FROM_1),
    "PRODUCER_BYTES": (16 * 1024 * 1024, [1, 10**9], NO_COUNTS, COUNT),
    "PRESENCE_GRACE": (10, [1, 0.5, 0], NO_SECONDS, SECONDS_OR_OFF),
    "NAMESPACE": (None, ["mysite.tenants.current", None], NO_FUNCTIONS, FUNCTION_OR_OFF),
    "NAMESPACE_CONTEXT": (None, [None], NO_FUNCTIONS, FUNCTION_OR_OFF),
}


DURATIONS = [key for key, row in KEYS.items() if "seconds" in row[3]]


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


def test_every_duration_is_known() -> None:
    assert len(DURATIONS) == 13


@pytest.mark.parametrize("key", DURATIONS)
def test_no_duration_is_none_and_each_says_how_it_is_switched_off(
    settings: Settings, key: str
) -> None:
    settings.DJANGO_SSE = {key: None}
    with pytest.raises(ImproperlyConfigured, match=r"or 0 |it cannot be off|milliseconds"):
        conf()


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


def test_credentials_are_not_for_every_origin() -> None:
    [problem] = problems({"ALLOWED_ORIGINS": ["*"], "ALLOW_CREDENTIALS": True})
    assert problem.startswith("DJANGO_SSE['ALLOW_CREDENTIALS'] cannot be used with \"*\": name ")
    for fine in (
        {"ALLOWED_ORIGINS": ["*"], "ALLOW_CREDENTIALS": False},
        {"ALLOWED_ORIGINS": ["https://app.example.com"], "ALLOW_CREDENTIALS": True},
        {"ALLOW_CREDENTIALS": True},
    ):
        assert list(problems(fine)) == []


def test_what_is_wrong_by_itself_hides_nothing_and_breaks_nothing() -> None:
    for origins in (None, 7, "*", [7]):
        found = list(problems({"ALLOWED_ORIGINS": origins, "ALLOW_CREDENTIALS": True}))
        assert found[0].startswith("DJANGO_SSE['ALLOWED_ORIGINS'] must be a list")


def test_there_is_nothing_wrong_with_an_empty_setting() -> None:
    assert list(problems({})) == []


def test_the_setting_is_read_again_when_a_test_changes_it(settings: Settings) -> None:
    settings.DJANGO_SSE = {"RETRY": 1000}
    assert conf().RETRY == 1000
    settings.DJANGO_SSE = {"RETRY": 2000}
    assert conf().RETRY == 2000
    settings.USE_TZ = False
    assert conf().RETRY == 2000
