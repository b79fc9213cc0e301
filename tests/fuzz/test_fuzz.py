"""The fuzzer in short, and that it finds what is wrong."""

import re
from collections.abc import Iterator

import pytest

from django_sse import event
from django_sse.streaming.encoded_events import Batch, EncodedEvent
from tests.fuzz.run import Fuzzer, chosen_at_random

# What it shows is the library's own.
pytestmark = pytest.mark.once

SEED = 4
SESSIONS = 100


@pytest.fixture
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer() as fuzzer:
        yield fuzzer


def run(fuzzer: Fuzzer) -> None:
    for chosen in chosen_at_random(SEED, SESSIONS):
        fuzzer.session(chosen)


def test_no_request_and_no_event_breaks_anything(fuzzer: Fuzzer) -> None:
    run(fuzzer)
    fuzzer.assert_nothing_is_left()
    assert fuzzer.tally["requests"] > 5 * SESSIONS
    assert fuzzer.tally["events"] > 5 * SESSIONS
    assert fuzzer.tally["forged before a stream"]
    assert fuzzer.tally["forged datagrams"]
    assert fuzzer.tally["forged messages of Redis"]


@pytest.mark.once
def test_an_injected_field_is_found(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event, "_LINE_END", re.compile("\r\n|\n"))
    with pytest.raises(AssertionError, match="CR"):
        run(fuzzer)


@pytest.mark.once
def test_an_event_that_comes_twice_is_found(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(self: Batch, blocks: list[EncodedEvent]) -> None:
        batch(self, [*blocks, blocks[-1]])

    batch = Batch.__init__
    monkeypatch.setattr(Batch, "__init__", joined)
    with pytest.raises(AssertionError, match="came twice"):
        run(fuzzer)


@pytest.mark.once
def test_a_group_that_was_not_authorized_is_found(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def all_groups(self: object, groups: list[str]) -> None:
        return None

    monkeypatch.setattr("tests.fuzz.views.Some.authorize", all_groups)
    with pytest.raises(AssertionError, match=r"not allowed|the position"):
        run(fuzzer)
