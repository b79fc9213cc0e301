import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_sse.groups.entries import Entry, GroupState
from django_sse.groups.replay import StartingPoint as Start
from django_sse.groups.replay import filling, is_lost, join, starting_point

# A group with the numbers 100 to 109, of which 105 and later are kept.
TRIMMED = GroupState(first=100, head=109, oldest=105)
# One of which everything is kept.
WHOLE = GroupState(first=100, head=109, oldest=100)
# One of which nothing is kept any more.
EMPTY = GroupState(first=100, head=109, oldest=110)
# One that was never published to.
NEW = GroupState()


def cancelled(state: GroupState) -> GroupState:
    return GroupState(state.first, state.head, state.oldest, cancelled=True)


def entries(*numbers: int) -> list[Entry]:
    return [Entry(number, b"data: %d\n\n" % number) for number in numbers]


# join


@pytest.mark.parametrize(
    ("numbers", "joined", "gap"),
    [
        ((), (), False),
        ((5,), (5,), False),
        ((5, 6, 7), (5, 6, 7), False),
        # What is known already is skipped.
        ((3, 4), (), False),
        ((3, 4, 5), (5,), False),
        ((5, 5, 6, 5), (5, 6), False),
        # A gap ends it, at the beginning or later.
        ((6,), (), True),
        ((6, 5), (), True),
        ((5, 7, 6), (5,), True),
        ((4, 6), (), True),
    ],
)
def test_what_goes_on_from_4_without_a_gap(
    numbers: tuple[int, ...], joined: tuple[int, ...], gap: bool
) -> None:
    assert join(4, entries(*numbers)) == (entries(*joined), gap)


@settings(deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(1, 20)))
def test_what_is_joined_is_always_contiguous(after: int, numbers: list[int]) -> None:
    joined, gap = join(after, entries(*numbers))
    assert [entry.number for entry in joined] == list(range(after + 1, after + 1 + len(joined)))
    beyond = [number for number in numbers if number > after + len(joined)]
    assert gap == bool(beyond)


# filling


@settings(deadline=None)
@given(st.lists(st.integers(0, 20)), st.integers(0, 50))
def test_only_the_last_of_what_fills_a_room_goes_beyond_it(sizes: list[int], room: int) -> None:
    count = filling(sizes, room)
    assert count <= 1 or sum(sizes[: count - 1]) < room
    assert count == len(sizes) or (count and sum(sizes[:count]) >= room)


# is_lost


@pytest.mark.parametrize(
    ("number", "state", "lost"),
    [
        # At the head nothing is missing, whatever is kept.
        (109, WHOLE, False),
        (109, TRIMMED, False),
        (109, EMPTY, False),
        # What follows is kept, down to the oldest.
        (108, TRIMMED, False),
        (104, TRIMMED, False),
        (103, TRIMMED, True),
        (108, EMPTY, True),
        (99, WHOLE, False),
        # A number that the group does not have yet is of a history that was lost.
        (110, WHOLE, True),
        (1, NEW, True),
        # One from before the group's first event, too.
        (98, WHOLE, True),
        # 0 is the position before a group's first event.
        (0, NEW, False),
        (0, WHOLE, False),
        (0, TRIMMED, True),
        (0, EMPTY, True),
    ],
)
def test_a_number_is_lost_when_what_follows_it_is(
    number: int, state: GroupState, lost: bool
) -> None:
    assert is_lost(number, state) is lost


# start


@pytest.mark.parametrize(
    ("sent", "state", "history", "expected"),
    [
        # A new client starts at the head, or before as much history as is kept.
        (None, NEW, 0, Start({"news": 0}, reset=False, fresh=True, over=False)),
        (None, NEW, 3, Start({"news": 0}, reset=False, fresh=True, over=False)),
        (None, WHOLE, 0, Start({"news": 109}, reset=False, fresh=True, over=False)),
        (None, WHOLE, 3, Start({"news": 106}, reset=False, fresh=True, over=False)),
        (None, WHOLE, 50, Start({"news": 99}, reset=False, fresh=True, over=False)),
        (None, TRIMMED, 50, Start({"news": 104}, reset=False, fresh=True, over=False)),
        (None, EMPTY, 50, Start({"news": 109}, reset=False, fresh=True, over=False)),
        # One with a position goes on there, and history is not for it.
        (107, WHOLE, 0, Start({"news": 107}, reset=False, fresh=False, over=False)),
        (107, WHOLE, 5, Start({"news": 107}, reset=False, fresh=False, over=False)),
        (109, WHOLE, 5, Start({"news": 109}, reset=False, fresh=False, over=False)),
        (0, NEW, 0, Start({"news": 0}, reset=False, fresh=False, over=False)),
        (0, WHOLE, 0, Start({"news": 0}, reset=False, fresh=False, over=False)),
        # One that has lost events is told, and then is like a new one.
        (103, TRIMMED, 0, Start({"news": 109}, reset=True, fresh=True, over=False)),
        (103, TRIMMED, 3, Start({"news": 106}, reset=True, fresh=True, over=False)),
        (999, WHOLE, 0, Start({"news": 109}, reset=True, fresh=True, over=False)),
        # A cancelled group is over for a new client, and for one that knows of it.
        (
            None,
            cancelled(WHOLE),
            0,
            Start({"news": 109}, reset=False, fresh=True, over=True),
        ),
        (
            109,
            cancelled(WHOLE),
            0,
            Start({"news": 109}, reset=False, fresh=False, over=True),
        ),
        # One that does not know yet is sent what it missed, and the close.
        (
            107,
            cancelled(WHOLE),
            0,
            Start({"news": 107}, reset=False, fresh=False, over=False),
        ),
        (
            108,
            cancelled(WHOLE),
            0,
            Start({"news": 108}, reset=False, fresh=False, over=False),
        ),
        # So is one that lost events, where the close is kept.
        (
            103,
            cancelled(TRIMMED),
            0,
            Start({"news": 108}, reset=True, fresh=True, over=False),
        ),
        (
            999,
            cancelled(WHOLE),
            0,
            Start({"news": 108}, reset=True, fresh=True, over=False),
        ),
        (103, cancelled(EMPTY), 0, Start({"news": 109}, reset=True, fresh=True, over=True)),
        # History is shown after a cancel as well. The close is not one of its events.
        (
            None,
            cancelled(WHOLE),
            3,
            Start({"news": 105}, reset=False, fresh=True, over=False),
        ),
        (
            None,
            cancelled(TRIMMED),
            50,
            Start({"news": 104}, reset=False, fresh=True, over=False),
        ),
        (
            None,
            cancelled(EMPTY),
            50,
            Start({"news": 109}, reset=False, fresh=True, over=True),
        ),
    ],
)
def test_where_a_stream_of_one_group_starts(
    sent: int | None, state: GroupState, history: int, expected: Start
) -> None:
    numbers = {} if sent is None else {"news": sent}
    assert starting_point(numbers, {"news": state}, history) == expected


def test_a_group_without_an_entry_starts_as_for_a_new_client() -> None:
    states = {"news": WHOLE, "jobs": WHOLE}
    assert starting_point({"news": 107}, states, history=0) == Start(
        {"news": 107, "jobs": 109}, reset=False, fresh=True, over=False
    )


def test_what_is_lost_in_one_group_resets_all_of_them() -> None:
    # The client's state is made anew from `initial_events`, which speaks of all groups.
    states = {"news": TRIMMED, "jobs": WHOLE}
    assert starting_point({"news": 1, "jobs": 107}, states, history=0) == Start(
        {"news": 109, "jobs": 109}, reset=True, fresh=True, over=False
    )


def test_a_stream_is_over_when_all_of_its_groups_are_cancelled() -> None:
    states = {"news": cancelled(WHOLE), "jobs": WHOLE}
    assert not starting_point({}, states, history=0).over
    assert starting_point({}, {"news": cancelled(WHOLE), "jobs": cancelled(WHOLE)}, history=0).over


def test_a_stream_is_not_over_while_one_of_its_cancelled_groups_has_something_left() -> None:
    states = {"news": cancelled(WHOLE), "jobs": cancelled(WHOLE)}
    assert starting_point({"news": 109, "jobs": 108}, states, history=0) == Start(
        {"news": 109, "jobs": 108}, reset=False, fresh=False, over=False
    )
    assert starting_point({"news": 109, "jobs": 109}, states, history=0).over


states = st.builds(
    lambda first, length, kept, is_cancelled: GroupState(
        first, first + length, first + length + 1 - min(kept, length + 1), is_cancelled
    ),
    st.integers(100, 110),
    st.integers(0, 10),
    st.integers(0, 12),
    st.booleans(),
) | st.just(NEW)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), states, min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 130)),
    st.integers(0, 20),
)
def test_wherever_a_stream_starts_it_can_be_served_from_there(
    states: dict[str, GroupState], sent: dict[str, int], history: int
) -> None:
    sent = {group: number for group, number in sent.items() if group in states}
    begin = starting_point(sent, states, history)
    assert begin.position.keys() == states.keys()
    for group, number in begin.position.items():
        assert number <= states[group].head
        assert not is_lost(number, states[group])
    if not begin.reset:
        assert begin.position.items() >= sent.items()
