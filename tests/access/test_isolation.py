"""Nothing that a client sends gets it an event of a group that the view did not authorize."""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar

import pytest
from channels.layers import get_channel_layer

from django_sse import Event, aposition, apublish
from django_sse.groups.position import format_position, parse_position
from django_sse.views import EventStreamView
from tests.streams import EventReader, get, open_stream, until

pytestmark = pytest.mark.usefixtures("memory_store")


class Everything(EventStreamView):
    """Streams the groups that the query names."""

    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


class Named(Everything):
    """Streams them, but no secret ones."""

    async def authorize(self, groups: Sequence[str]) -> list[str]:
        return [group for group in groups if not group.startswith("secret")]


class NamedWithState(Named):
    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("state")


class Mine(EventStreamView):
    """A group of several users: an event for one of them names him."""

    groups: ClassVar[Sequence[str]] = ["team"]

    def filter_event(self, event: Event) -> Event | None:
        return event if event.event in (None, self.request.GET["user"]) else None


class MineWithState(Mine):
    async def initial_events(self) -> AsyncGenerator[Event, None]:
        for user in ("ann", "bob"):
            yield Event({"state of": user}, event=user)


async def seen(stream: EventReader) -> list[str]:
    """Return what a stream shows up to the last event of its group, which everybody may see."""
    return [event.text for event in await stream.until("last")][:-1]


def forged_positions(secret: int) -> list[str]:
    """Positions of another's group, alone and beside those of one's own."""
    return [
        format_position({"secret": secret}),
        format_position({"secret": 0}),
        format_position({"secret": secret - 1, "news": 0}),
        format_position({"news": 0, "secret": secret - 1}),
        format_position({"Secret": secret - 1, "news": 0}),
        f"{format_position({'secret': 0})}~{format_position({'news': 0})}",
    ]


@pytest.mark.parametrize("where", ["header", "lastEventId", "last_event_id"])
@pytest.mark.parametrize("view", [Named, NamedWithState])
async def test_a_position_of_a_group_that_was_not_authorized_yields_nothing_of_it(
    where: str, view: type[EventStreamView]
) -> None:
    await apublish("secret", "hidden")
    await apublish("news", "old")
    [number] = parse_position(await aposition("secret"), ["secret"]).values()
    for sent in forged_positions(number):
        path = "/?group=news&group=secret"
        if where != "header":
            path += f"&{where}={sent}"
        header = sent if where == "header" else None
        async with open_stream(view.as_view(), path, last_event_id=header) as stream:
            await apublish("secret", "hidden")
            await apublish("news", "last")
            assert {"old", "state", "{}"} >= set(await seen(stream))
            assert parse_position(stream.last_event_id, ["secret"]) == {}


@pytest.mark.parametrize("other_streams", [0, 1], ids=["store", "tail"])
async def test_fewer_groups_than_asked_for_are_fewer_in_history_and_replay_as_well(
    other_streams: int,
) -> None:
    both = "/?group=news&group=secret"
    start = await aposition("news", "secret")
    async with open_stream(
        Everything.as_view(), both if other_streams else "/?group=else"
    ) as other:
        for group in ("secret", "news", "secret"):
            await apublish(group, f"of {group}")
        if other_streams:
            for _ in range(3):
                await other.next_event()
        async with (
            open_stream(Named.as_view(history=10), both) as history,
            open_stream(Named.as_view(), both, last_event_id=start) as replay,
        ):
            await apublish("secret", "of secret")
            await apublish("news", "last")
            assert await seen(history) == await seen(replay) == ["of news"]


@pytest.mark.parametrize("name", ["Secret", "secret%00", "secret%20", "sEcret", "%EF%BB%BFsecret"])
async def test_a_name_that_is_nearly_another_is_another_group_or_none(name: str) -> None:
    """What the view authorizes by name is what is streamed, byte for byte."""
    await apublish("secret", "hidden")
    response = await Named.as_view(history=10)(get(f"/?group={name}&group=news"))
    if response.status_code == 404:
        return
    async with open_stream(Named.as_view(history=10), f"/?group={name}&group=news") as stream:
        await apublish("secret", "hidden")
        await apublish("news", "last")
        assert await seen(stream) == []


@pytest.mark.parametrize("other_streams", [0, 1], ids=["store", "tail"])
async def test_two_users_of_a_group_see_each_their_own_in_history_replay_and_live(
    other_streams: int,
) -> None:
    start = await aposition("team")
    group = "team" if other_streams else "else"
    async with open_stream(EventStreamView.as_view(groups=[group])):
        for user in ("ann", "bob"):
            await apublish("team", f"old for {user}", event=user)
        for user in ("ann", "bob"):
            path = f"/?user={user}"
            async with (
                open_stream(Mine.as_view(history=10), path) as history,
                open_stream(Mine.as_view(), path, last_event_id=start) as replay,
            ):
                for other in ("bob", "ann"):
                    await apublish("team", f"new for {other}", event=other)
                    await get_channel_layer().group_send(
                        "team", {"type": "sse.event", "data": f"plain for {other}", "event": other}
                    )
                await apublish("team", "for all")
                for stream in (history, replay):
                    texts = {event.text for event in await stream.until("for all")}
                    assert f"old for {user}" in texts
                    assert f"new for {user}" in texts
                    assert all(text.endswith((user, "for all")) for text in texts)


async def test_what_a_filter_hides_is_hidden_in_the_initial_events_too() -> None:
    async with open_stream(MineWithState.as_view(), "/?user=bob") as stream:
        assert (await stream.next_event()).data == '{"state of":"bob"}'
        assert stream.text.count("state of") == 1


async def test_an_initial_event_that_a_filter_cannot_read_is_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stream(MineWithState.as_view()) as stream:
        await until(lambda: stream.last_event_id)
    assert "filter_event failed" in caplog.text
    assert "state of" not in stream.text
