"""What a stream gets to catch up: plain decisions about positions, states and entries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django_sse.groups.entries import Entry, GroupState


def join(after: int, entries: Sequence[Entry]) -> tuple[Sequence[Entry], bool]:
    """Return the entries that follow a number without a gap, and whether there was a gap.

    Entries at or below ``after`` are skipped, since a doorbell and the store may report the same
    ones.
    """
    if len(entries) == 1 and entries[0].number == after + 1:
        # As of most doorbells.
        return entries, False
    joined: list[Entry] = []
    for entry in entries:
        if entry.number <= after:
            continue
        if entry.number != after + 1:
            return joined, True
        joined.append(entry)
        after = entry.number
    return joined, False


def filling(sizes: Iterable[int], room: int) -> int:
    """Return how many of the first sizes fill ``room`` bytes. The last one may exceed it."""
    count = 0
    for count, size in enumerate(sizes, 1):  # noqa: B007
        room -= size
        if room <= 0:
            break
    return count


def is_lost(number: int, state: GroupState, replay_events: int | None = None) -> bool:
    """Whether a group cannot replay what follows a number, or this is more than ``replay_events``
    events."""
    if number == state.origin:
        lost = state.head != state.origin and state.oldest != state.first
        number = state.first - 1 if state.first else state.head
    else:
        lost = number > state.head or number + 1 < state.oldest
    return lost or (replay_events is not None and state.head - number > replay_events)


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """Where a stream starts.

    ``position`` is the last number in each group that the client has, or does not need. ``reset``
    means that the client has lost events. ``fresh`` means that it does not know the state of at
    least one group. ``over`` means that nothing is left to stream (204).
    """

    position: dict[str, int]
    reset: bool
    fresh: bool
    over: bool


def starting_point(
    sent: Mapping[str, int],
    states: Mapping[str, GroupState],
    history: int,
    replay_events: int | None = None,
) -> StartingPoint:
    """Decide where a stream starts, given the position that its client sent.

    Args:
        sent: The numbers of the client's ``Last-Event-ID``.
        states: The state of each of the stream's groups.
        history: How many past events of a group a client gets that has no position in it.
        replay_events: The most missed events of a group that a client still gets; None for no
            limit. With more, it gets a reset.
    """
    reset = any(is_lost(number, states[group], replay_events) for group, number in sent.items())
    known: Mapping[str, int] = {} if reset else sent
    position = {
        group: known[group] if group in known else _for_new_client(state, history)
        for group, state in states.items()
    }
    all_cancelled = all(state.cancelled for state in states.values())
    if reset and all_cancelled:
        # The client does not know yet that the groups are cancelled. It gets the `close`, if kept.
        position = {group: max(state.head, state.oldest) - 1 for group, state in states.items()}
    over = all_cancelled and all(position[group] >= state.head for group, state in states.items())
    return StartingPoint(position, reset, fresh=len(known) < len(states), over=over)


def _for_new_client(state: GroupState, history: int) -> int:
    if not history:
        return state.head
    # The `close` of a cancelled group is not one of its past events.
    last = state.head - 1 if state.cancelled else state.head
    return min(max(last - history, state.oldest - 1), state.head)
