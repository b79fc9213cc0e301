"""Which streams are looked at at which tick."""

from math import inf

import pytest

from django_sse.streaming.timetable import Timetable


class Item:
    """What a timetable needs of a stream."""

    next_look = 0


@pytest.fixture
def timetable() -> Timetable[Item]:
    return Timetable[Item](1000.0, 0.5)


@pytest.mark.parametrize(
    ("due", "tick"),
    [(999, 1000.5), (1000.1, 1000.5), (1000.5, 1000.5), (1000.6, 1001.0), (1007.3, 1007.5)],
)
def test_a_stream_is_looked_at_at_the_first_tick_that_is_not_before_it_is_due(
    due: float, tick: float, timetable: Timetable[Item]
) -> None:
    item = Item()
    timetable.add(item, due)
    while timetable.next_tick < tick:
        assert not list(timetable.take_due(timetable.next_tick))
    assert timetable.next_tick == tick
    assert list(timetable.take_due(tick)) == [item]
    assert not list(timetable.take_due(2000))


def test_a_late_tick_stands_for_those_that_it_has_missed(timetable: Timetable[Item]) -> None:
    items = {Item(), Item(), Item()}
    for number, item in enumerate(items):
        timetable.add(item, 1000.5 + number)
    assert set(timetable.take_due(1002.6)) == items
    assert timetable.next_tick == 1003.0


def test_a_tick_that_comes_early_counts(timetable: Timetable[Item]) -> None:
    item = Item()
    timetable.add(item, 1000.5)
    assert list(timetable.take_due(1000.499)) == [item]
    assert timetable.next_tick == 1001.0


def test_who_is_added_at_a_tick_is_looked_at_at_the_next_one(timetable: Timetable[Item]) -> None:
    item = Item()
    timetable.add(item, 1000.5)
    for now in (1000.5, 1001.0, 1001.5):
        for due in timetable.take_due(now):
            timetable.add(due, now)
        assert item.next_look * 0.5 + 1000 == now + 0.5


def test_who_was_removed_is_looked_at_no_more(timetable: Timetable[Item]) -> None:
    one, two, three = Item(), Item(), Item()
    for item in (one, two, three):
        timetable.add(item, 1001)
    timetable.remove(one)
    due = timetable.take_due(1001)
    first = next(due)
    timetable.remove(two if first is three else three)
    assert not list(due)


def test_who_was_not_taken_is_still_due(timetable: Timetable[Item]) -> None:
    items = {Item(), Item()}
    for item in items:
        timetable.add(item, 1000.5)
    first = next(timetable.take_due(1000.5))
    assert set(timetable.take_due(1001)) == items - {first}


def test_who_is_never_due_is_looked_at_now_and_then(timetable: Timetable[Item]) -> None:
    item = Item()
    timetable.add(item, inf)
    assert not list(timetable.take_due(1059))
    assert list(timetable.take_due(1062)) == [item]
