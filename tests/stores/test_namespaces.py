"""On every store, the groups and owners of one tenant are nothing to another."""

import pytest
from pytest_django import Settings

from django_sse import GroupCancelled, acancel, aposition, apublish, apublish_many, areopen
from django_sse.views import EventStreamView
from tests.redis import RedisServer
from tests.streams import EventReader, get, open_stream
from tests.tenancy import NAMESPACE, entered

LONGEST = "n" * 63


class News(EventStreamView):
    groups = ["news", "g" * 99]

    async def get_owner(self) -> int:
        return 7


news = News.as_view()


class Shop(News):
    groups = ["shop"]


shop = Shop.as_view()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("database", marks=pytest.mark.django_db(transaction=True)),
        "redis",
    ]
)
def store(request: pytest.FixtureRequest, settings: Settings) -> None:
    """Each of the library's own stores, empty, for tenants."""
    name = request.param
    options = {}
    if name == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        options = {"url": server.url}
    settings.MIDDLEWARE = []
    settings.DJANGO_SSE = {
        "STORE": {"BACKEND": name, "OPTIONS": options},
        "SYNC_INTERVAL": 0.05,
        **NAMESPACE,
    }


pytestmark = pytest.mark.usefixtures("store", "everything_ends")


async def gets_only(reader: EventReader, *data: str) -> None:
    """Assert that a stream gets these data, and nothing else before or between."""
    assert [(await reader.next_event()).data for _ in data] == list(data)


async def test_what_a_tenant_publishes_reaches_its_own_streams_alone() -> None:
    with entered("north"):
        async with open_stream(news) as north:
            with entered(LONGEST):
                async with open_stream(news) as south:
                    for group in News.groups:
                        with entered("north"):
                            await apublish_many([(group, "of the north")])
                        published = await apublish(group, "of the south")
                        await gets_only(north, "of the north")
                        await gets_only(south, "of the south")
                        assert published.group == group
                        assert south.last_event_id == await aposition(*News.groups)


async def test_a_tenant_cancels_and_reopens_its_own_groups_alone() -> None:
    with entered("south"):
        async with open_stream(news) as south:
            with entered("north"):
                async with open_stream(news) as north:
                    for group in News.groups:
                        await acancel(group, reason="sold out")
                    assert [event.event for event in await north.rest()] == ["close"]
                assert (await news(get())).status_code == 204
                with pytest.raises(GroupCancelled, match=r"^Group 'news' is .* sse_reopen news`"):
                    await apublish("news", "too late")
            await apublish("news", "going on")
            await gets_only(south, "going on")
            await areopen("news")
        assert (await news(get(headers={"Last-Event-ID": north.last_event_id}))).status_code == 200
        with entered("north"):
            assert (
                await news(get(headers={"Last-Event-ID": north.last_event_id}))
            ).status_code == 204
            await areopen("news")
            async with open_stream(news, last_event_id=north.last_event_id) as reopened:
                await apublish("news", "open again")
                await gets_only(reopened, "open again")


async def test_a_position_of_another_tenant_is_a_reset() -> None:
    positions = {}
    for name in ("north", "south"):
        with entered(name):
            await apublish("news", "seen")
            positions[name] = await aposition(*News.groups)
            await apublish("news", "missed")
    with entered("north"):
        async with open_stream(news, last_event_id=positions["north"]) as back:
            await gets_only(back, "missed")
        async with open_stream(news, last_event_id=positions["south"]) as lost:
            assert (await lost.next_event()).event == "reset"
            await apublish("news", "new")
            await gets_only(lost, "new")


async def test_a_position_of_before_there_were_tenants_is_a_reset(settings: Settings) -> None:
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, "NAMESPACE": None, "NAMESPACE_CONTEXT": None}
    before = await aposition("news")
    settings.DJANGO_SSE = {**settings.DJANGO_SSE, **NAMESPACE}
    with entered("north"):
        async with open_stream(news, last_event_id=before) as lost:
            assert (await lost.next_event()).event == "reset"


@pytest.mark.parametrize("group", [None, "shop"])
async def test_the_same_user_of_another_tenant_is_another_one(group: str | None) -> None:
    with entered("south"):
        async with open_stream(shop) as south:
            with entered("north"):
                async with open_stream(shop) as north:
                    await acancel(group, user=7, reason="kicked")
                    [close] = await north.rest()
                    assert close.json() == {"reason": "kicked"}
                assert (await shop(get())).status_code == 204
            await apublish("shop", "going on")
            await gets_only(south, "going on")
        assert (await shop(get())).status_code == 200


async def test_who_is_left_out_is_the_user_of_that_tenant() -> None:
    with entered("north"):
        async with open_stream(shop) as north:
            with entered("south"):
                async with open_stream(shop) as south:
                    for name in ("north", "south"):
                        with entered(name):
                            if name == "north":
                                await apublish("shop", "not for its own user", exclude=7)
                            else:
                                await apublish("shop", "for whom it is", exclude=8)
                            await apublish("shop", "last")
                    await gets_only(north, "last")
                    await gets_only(south, "for whom it is", "last")
