"""How groups share the turns of the event loop in which they hand out their new events."""

import asyncio

from django_sse.streaming.fan_out import STREAMS_A_TURN, FanOut
from tests.streams import until


class Group:
    """A group with new events for some streams."""

    def __init__(self, streams: int) -> None:
        self.without = streams

    @property
    def has_new_events(self) -> bool:
        return self.without > 0

    def hand_out(self, limit: int) -> int:
        served = min(limit, self.without)
        self.without -= served
        return served


def fan_out_of(*groups: Group) -> None:
    fan_out = FanOut(asyncio.get_running_loop())
    for group in groups:
        fan_out.add(group)


async def test_a_large_group_holds_up_no_other() -> None:
    large, small = Group(20 * STREAMS_A_TURN), Group(1)
    fan_out_of(large, small)
    while small.has_new_events:
        await asyncio.sleep(0)
    assert large.has_new_events
    await until(lambda: not large.has_new_events)


async def test_other_tasks_have_their_turns_amid_many_small_groups() -> None:
    groups = [Group(1) for _ in range(3 * STREAMS_A_TURN)]
    fan_out_of(*groups)
    for turn in (1, 2, 3):
        await asyncio.sleep(0)
        served = [group for group in groups if not group.has_new_events]
        assert len(served) == turn * STREAMS_A_TURN


async def test_groups_that_nobody_follows_any_more_take_their_time_too() -> None:
    asked = []

    class Left(Group):
        def hand_out(self, limit: int) -> int:
            asked.append(self)
            return super().hand_out(limit)

    fan_out_of(*(Left(0) for _ in range(2 * STREAMS_A_TURN)))
    await asyncio.sleep(0)
    assert len(asked) == STREAMS_A_TURN
    await until(lambda: len(asked) == 2 * STREAMS_A_TURN)
