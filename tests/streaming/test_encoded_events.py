"""The tail: what a hub keeps of a group for those who come back."""

from collections.abc import Iterable

from django_sse.groups.entries import Entry
from django_sse.streaming.encoded_events import EncodedEvent, Tail

SIZE = EncodedEvent("news", Entry(1, b"data: x\n\n")).size


def events(numbers: Iterable[int]) -> list[EncodedEvent]:
    return [EncodedEvent("news", Entry(number, b"data: x\n\n")) for number in numbers]


def numbers(tail: Tail, after: int) -> list[int]:
    return [encoded.number for encoded in tail.after(after)]


def tail_of(first: int, last: int, *, room_for: int = 100) -> Tail:
    tail = Tail(room_for * SIZE)
    tail.append(events(range(first, last + 1)))
    return tail


def test_an_empty_tail_begins_with_what_comes_next() -> None:
    tail = Tail(SIZE)
    tail.clear(8)
    assert tail.first == 8
    assert tail.after(7) == []


def test_it_gives_what_follows_a_number() -> None:
    tail = tail_of(5, 9)
    assert tail.first == 5
    assert numbers(tail, 4) == [5, 6, 7, 8, 9]
    assert numbers(tail, 7) == [8, 9]
    assert numbers(tail, 9) == []


def test_what_is_new_pushes_out_what_is_old() -> None:
    tail = tail_of(1, 10, room_for=4)
    assert numbers(tail, tail.first - 1) == [7, 8, 9, 10]


def test_one_block_larger_than_all_its_room_is_not_kept() -> None:
    tail = tail_of(1, 1, room_for=0)
    assert tail.first == 2


def test_older_blocks_are_put_in_front_as_far_as_there_is_room() -> None:
    tail = tail_of(8, 9, room_for=5)
    assert tail.has_room
    assert tail.prepend(events([7, 6, 5, 4, 3]))
    assert numbers(tail, tail.first - 1) == [5, 6, 7, 8, 9]
    assert not tail.has_room


def test_older_blocks_that_do_not_go_on_from_there_are_left_out() -> None:
    tail = tail_of(8, 9)
    assert not tail.prepend(events([6, 5]))
    assert not tail.prepend(events([9, 8]))
    assert tail.prepend(events([8, 7]))
    assert numbers(tail, 6) == [7, 8, 9]


def test_a_smaller_bound_cuts_at_once() -> None:
    tail = tail_of(1, 10)
    tail.bound(3 * SIZE)
    assert tail.first == 8
    tail.append(events([11]))
    assert numbers(tail, 8) == [9, 10, 11]


def test_cleared_it_forgets_all() -> None:
    tail = tail_of(1, 10, room_for=10)
    tail.clear(20)
    assert tail.first == 20
    tail.append(events(range(20, 25)))
    assert numbers(tail, 19) == [20, 21, 22, 23, 24]
