"""The soak test in short, and that its verdict misses nothing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.live.engines import ENGINES
from tests.live.servers import require
from tests.soak.rollout import largest_crowd
from tests.soak.run import soak
from tests.soak.verdict import (
    Answered,
    Findings,
    Numbered,
    Row,
    Stretch,
    Tried,
    compare,
    judge_answer,
    judge_client,
    judge_history,
    read_truth,
    table,
)

# Of 200 in the long form: what is delivered to each of them takes most of the time.
CLIENTS = 60
START = 10**15
HISTORY = [Numbered(START + number, f"news plain {number} 0 ") for number in range(1, 6)]
TRUTH = {("plain", number): Tried("news", "done") for number in range(1, 6)}
ONE, TWO, THREE, FOUR, FIVE = HISTORY
CUT_THREE = Numbered(THREE.number, "news plain 3 ")
SIX = Numbered(START + 6, "news plain 6 0 ")
THREE_AGAIN = Numbered(SIX.number, THREE.text)
FOUR_AGAIN = Numbered(SIX.number, FOUR.text)


def found_by_client(*stretches: Stretch, history: Sequence[Numbered] = HISTORY) -> dict[str, int]:
    findings = Findings()
    judge_client("a client", "news", stretches, history, TRUTH, findings)
    return findings.counts


def found_in_history(
    *history: Numbered, outcomes: dict[int, str] | None = None, forgetful: bool = False
) -> dict[str, int]:
    truth = dict(TRUTH)
    for number, outcome in (outcomes or {}).items():
        truth["plain", number] = Tried("news", outcome)
    findings = Findings()
    judge_history("news", history, truth, findings, forgetful=forgetful)
    return findings.counts


# What it looks for is in how processes and stores work together.
@pytest.mark.once
@pytest.mark.timeout(240)
async def test_a_minute_of_faults_loses_repeats_and_reorders_nothing(tmp_path: Path) -> None:
    require("uvicorn")
    row = await soak(
        ENGINES["sqlite"], tmp_path, seconds=30, pause=2, seed="short", clients=CLIENTS
    )
    assert (row.complaints, row.findings.examples) == ([], [])
    assert row.deliveries > 10 * row.events > 1000
    assert len(row.answers) > 5
    assert sum(len(answer.history) for answer in row.answers) > 100
    kinds = ("server", "publisher", "publisher under gevent")
    assert {f"{kind} killed" for kind in kinds} < row.faults.keys()


@pytest.mark.once
@pytest.mark.timeout(240)
async def test_a_build_that_does_not_heal_fails(tmp_path: Path) -> None:
    require("uvicorn")
    # On a busy machine it takes more of them until something was missing.
    for seconds in (5, 15, 45):
        directory = tmp_path / str(seconds)
        directory.mkdir()
        row = await soak(
            ENGINES["sqlite"],
            directory,
            seconds=seconds,
            pause=60,
            seed="broken",
            catching_up=2,
            clients=CLIENTS,
            application="tests.soak.broken:application",
        )
        if row.findings.counts["lost"]:
            break
    assert row.findings.counts["lost"]
    assert not row.passed


def test_what_all_agree_on_is_right() -> None:
    assert not found_by_client(Stretch(START, HISTORY))
    assert not found_by_client(Stretch(START + 2, HISTORY[2:]))
    assert not found_in_history(*HISTORY)


@pytest.mark.parametrize(
    ("received", "finding"),
    [
        ([ONE, TWO, FOUR, FIVE], {"lost": 1}),
        ([TWO, THREE, FOUR, FIVE], {"lost": 1}),
        ([ONE, TWO, THREE, FOUR], {"lost": 1}),
        ([ONE, TWO, TWO, THREE, FOUR, FIVE], {"duplicated": 1}),
        ([ONE, TWO, FOUR, THREE, FIVE], {"out of order": 1}),
        ([ONE, TWO, THREE, FOUR, FIVE, SIX], {"invented": 1}),
        (
            [ONE, TWO, Numbered(START + 3, "news plain 3 0 cut"), FOUR, FIVE],
            {"invented": 1, "lost": 1},
        ),
    ],
)
def test_what_a_client_missed_or_did_not_have_to_receive_is_found(
    received: list[Numbered], finding: dict[str, int]
) -> None:
    findings = Findings()
    compare("a client", HISTORY, received, findings)
    assert findings.counts == finding
    assert found_by_client(Stretch(START, received)) == finding


def test_only_a_reset_excuses_what_is_missing() -> None:
    assert not found_by_client(Stretch(START, [ONE, TWO]), Stretch(START + 4, [FIVE]))
    assert found_by_client(Stretch(START, [ONE, THREE]), Stretch(START + 4, [FIVE])) == {"lost": 1}
    assert found_by_client(Stretch(START, [ONE, TWO]), Stretch(START + 4, [])) == {"lost": 1}


def test_a_group_that_nothing_was_published_to_is_followed_from_its_first_event() -> None:
    earlier = Numbered(START - 100, "news plain 0 0 ")
    assert not found_by_client(Stretch(0, HISTORY), history=[earlier, *HISTORY])
    assert found_by_client(Stretch(0, HISTORY[1:]), history=[earlier, *HISTORY]) == {"lost": 1}


def test_what_only_the_publisher_remembers_is_missed_too() -> None:
    forgotten = [ONE, TWO, FOUR, FIVE]
    assert found_by_client(Stretch(START, forgotten), history=forgotten) == {"lost": 1}
    assert not found_by_client(
        Stretch(START, [ONE, TWO]), Stretch(START + 3, [FOUR, FIVE]), history=forgotten
    )


@pytest.mark.parametrize(
    ("history", "outcomes", "finding"),
    [
        ([ONE, TWO, FOUR, FIVE], {}, {"lost": 1}),
        ([*HISTORY, THREE_AGAIN], {}, {"duplicated": 1}),
        ([TWO, ONE, THREE, FOUR, FIVE], {}, {"out of order": 1}),
        ([*HISTORY, SIX], {}, {"invented": 1}),
        (HISTORY, {3: "gone"}, {"invented": 1}),
        (HISTORY, {3: "unknown"}, {}),
        ([ONE, TWO, FOUR, FIVE], {3: "unknown"}, {}),
        ([*HISTORY, THREE_AGAIN], {3: "unknown"}, {"duplicated": 1}),
    ],
)
def test_what_a_store_keeps_is_what_was_published(
    history: list[Numbered], outcomes: dict[int, str], finding: dict[str, int]
) -> None:
    assert found_in_history(*history, outcomes=outcomes) == finding


def test_a_store_that_forgets_may_do_no_more_than_that() -> None:
    assert not found_in_history(FOUR, FIVE, forgetful=True)
    assert found_in_history(FOUR, FIVE, FOUR_AGAIN, forgetful=True) == {"duplicated": 1}


def test_a_killed_publisher_leaves_its_last_event_in_doubt(tmp_path: Path) -> None:
    notes = tmp_path / "plain.truth"
    notes.write_text("try 1 news\ndone 1\ntry 2 news\ngone 2\ntry 3 news\n")
    assert read_truth([notes]) == {
        ("plain", 1): Tried("news", "done"),
        ("plain", 2): Tried("news", "gone"),
        ("plain", 3): Tried("news", "unknown"),
    }


def found_in_answer(
    *received: Numbered,
    history: Sequence[Numbered] = HISTORY,
    runs: dict[str, int] | None = None,
    reasons: Sequence[str | None] = ("complete", "complete"),
    forgetful: bool = False,
    reset_after: int | None = None,
) -> dict[str, int]:
    stretches = [Stretch(START, list(received[:reset_after]))]
    if reset_after is not None:
        stretches.append(Stretch(START, list(received[reset_after:])))
    readings = {"first": stretches, "late": [Stretch(0, list(history))]}
    findings = Findings()
    answer = Answered("news", runs or {"plain": 5}, list(history), readings, list(reasons))
    judge_answer(answer, findings, forgetful=forgetful)
    return findings.counts


@pytest.mark.parametrize("forgetful", [False, True])
def test_an_answer_that_all_read_to_its_end_is_right(forgetful: bool) -> None:
    assert not found_in_answer(*HISTORY, forgetful=forgetful)
    said = [ONE, TWO, THREE]
    cut_short = {"plain": 0}
    assert not found_in_answer(
        *said, history=said, runs=cut_short, reasons=["stopped"] * 2, forgetful=forgetful
    )


@pytest.mark.parametrize(
    ("received", "finding"),
    [
        ([ONE, TWO, FOUR, FIVE], {"lost": 1}),
        ([TWO, THREE, FOUR, FIVE], {"lost": 1}),
        ([ONE, TWO, THREE, FOUR], {"lost": 1}),
        ([ONE, TWO, TWO, THREE, FOUR, FIVE], {"duplicated": 1}),
        ([ONE, TWO, FOUR, THREE, FIVE], {"out of order": 1}),
    ],
)
def test_what_a_reader_of_an_answer_misses_is_found(
    received: list[Numbered], finding: dict[str, int]
) -> None:
    assert found_in_answer(*received) == finding


@pytest.mark.parametrize(
    ("history", "finding"),
    [
        ([ONE, TWO, FOUR, FIVE], {"lost": 1}),
        ([ONE, TWO, THREE, FOUR], {"lost": 1}),
        ([*HISTORY, THREE_AGAIN], {"duplicated": 1}),
        ([*HISTORY, SIX], {"invented": 1}),
    ],
)
def test_words_that_nobody_received_are_missed_too(
    history: list[Numbered], finding: dict[str, int]
) -> None:
    assert found_in_answer(*history, history=history) == finding


def test_an_answer_without_an_end_and_one_that_ran_twice_are_found() -> None:
    assert found_in_answer(*HISTORY, reasons=["complete"]) == {"endless": 1}
    assert found_in_answer(*HISTORY, runs={"plain": 5, "again": 0}) == {"run twice": 1}
    assert not found_in_answer(*HISTORY, runs={"plain": 5, "again": 0}, forgetful=True)


def test_a_run_that_was_forgotten_before_its_end_was_none_the_less_received() -> None:
    cut_off = [Numbered(START - 9 + number, f"news cut {number} 0 ") for number in (1, 2)]
    runs = {"cut": 0, "plain": 5}
    assert not found_in_answer(*cut_off, *HISTORY, runs=runs, forgetful=True, reset_after=2)
    assert found_in_answer(*cut_off, *HISTORY, runs=runs) == {
        "run twice": 1,
        "invented": 2,
        "lost": 2,
    }


def test_only_an_answer_that_is_forgotten_altogether_may_have_no_end() -> None:
    reasons = ["complete"]
    assert not found_in_answer(*HISTORY, history=[], reasons=reasons, forgetful=True)
    assert found_in_answer(*HISTORY, reasons=reasons, forgetful=True) == {"endless": 1}


def test_the_table_calls_no_answer_endless_that_is_forgotten() -> None:
    readings = {"first": [Stretch(START, list(HISTORY))]}
    answers = [
        Answered("news", {"plain": 5}, list(history), readings, []) for history in (HISTORY, [])
    ]
    row = Row("redis", 1, 5, 5, Counter(), Findings(), 0, 0, 0, [], answers)
    assert "2 of 5 words: 1x endless, 1x forgotten" in table([row])


def test_clients_that_try_to_come_back_together_are_a_crowd() -> None:
    spread = [number / 25 for number in range(50)]
    assert largest_crowd(spread) == 3
    together = [10 + number / 1000 for number in range(20)]
    assert largest_crowd([*spread, *together]) == 20
    assert largest_crowd([]) == 0


def test_words_that_a_store_has_forgotten_are_missed_without_a_reset() -> None:
    assert found_in_answer(ONE, TWO, FIVE, forgetful=True) == {"lost": 2}
    assert not found_in_answer(ONE, TWO, FIVE, forgetful=True, reset_after=2)
    assert found_in_answer(ONE, TWO, TWO, forgetful=True) == {"duplicated": 1}
