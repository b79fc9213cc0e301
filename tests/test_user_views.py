"""Streams of users: what is published to a user reaches all her devices, and nobody else."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import models
from django.http import HttpRequest
from django.test import AsyncClient
from django.urls import path
from django.utils.functional import SimpleLazyObject
from pytest_django import Settings

from django_sse import (
    InvalidEvent,
    acancel,
    aposition,
    apublish,
    apublish_many,
    apublish_to_user,
    group_name,
    publish_to_user,
    user_group,
)
from django_sse.groups.names import validate_group
from django_sse.views import EventStreamView, UserEventStreamView
from tests.streams import data, reading
from tests.tenancy import NAMESPACE, entered
from tests.users import answer, logged_in, stream, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("everything_ends"),
]

MINE = "/mine/"


class Scanner(models.Model):
    """Not the project's user model, and yet it logs in."""

    is_authenticated = True

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return f"scanner {self.pk}"


class Delegated(UserEventStreamView):
    """Shows the owner that the request names."""

    async def get_owner(self) -> Any:
        return self.request.GET.get("owner")


urlpatterns = [
    path(MINE.strip("/") + "/", UserEventStreamView.as_view()),
    path("both/<int:pk>/", UserEventStreamView.as_view(groups=["news", "job-{pk}"])),
    path("resumable/", UserEventStreamView.as_view(resume_seconds=60)),
    path("delegated/", Delegated.as_view()),
    path("any/<str:slug>/", EventStreamView.as_view(groups=["{slug}"])),
]


async def test_a_user_gets_it_on_all_devices_and_nobody_else_does() -> None:
    phone, laptop, of_grace = [await logged_in(name) for name in ("ada", "ada", "grace")]
    async with (
        stream(phone, url=MINE) as on_phone,
        stream(laptop, url=MINE) as on_laptop,
        stream(of_grace, url=MINE) as other,
    ):
        await apublish_to_user(await user("ada"), {"text": "hi"}, event="note")
        await apublish_to_user(await user("grace"), "for grace")
        for reader in (on_phone, on_laptop):
            event = await reader.next_event()
            assert (event.text, event.event) == ('{"text":"hi"}', "note")
        assert (await other.next_event()).data == "for grace"


async def test_a_device_that_was_away_gets_what_it_missed() -> None:
    client = await logged_in()
    async with stream(client, url=MINE) as before:
        pass
    await apublish_to_user(await user(), "missed")
    async with stream(client, before.last_event_id, MINE) as after:
        assert (await after.next_event()).data == "missed"


async def test_an_id_of_another_user_brings_nothing_of_hers() -> None:
    async with stream(await logged_in("grace"), url=MINE) as of_grace:
        pass
    await apublish_to_user(await user("grace"), "for grace")
    async with stream(await logged_in("ada"), of_grace.last_event_id, MINE) as of_ada:
        await apublish_to_user(await user("ada"), "for ada")
        assert (await of_ada.next_event()).data == "for ada"


@pytest.mark.parametrize("url", [MINE, "/both/7/", "/delegated/?owner=7"])
async def test_visitors_who_are_not_logged_in_get_401(url: str) -> None:
    assert (await answer(AsyncClient(), url=url)).status_code == 401


async def test_a_stream_that_nobody_owns_is_refused() -> None:
    assert (await answer(await logged_in(), url="/delegated/")).status_code == 403


async def test_the_owner_of_the_stream_is_who_is_meant() -> None:
    async with stream(await logged_in(), url="/delegated/?owner=account-7") as reader:
        await apublish_to_user("account-7", "for the account")
        assert (await reader.next_event()).data == "for the account"


async def test_other_groups_may_be_in_the_same_stream() -> None:
    async with stream(await logged_in(), url="/both/7/") as reader:
        await apublish("news", "news")
        await apublish("job-7", "job")
        await apublish_to_user(await user(), "mine")
        received = [await reader.next_event() for _ in range(3)]
        assert sorted(data(received)) == ["job", "mine", "news"]


@pytest.mark.parametrize("url", [MINE, "/resumable/"])
async def test_a_kick_ends_it(url: str) -> None:
    async with stream(await logged_in(), url=url) as reader:
        await acancel(user=await user(), reason="kicked")
        assert [event.event for event in await reader.rest()] == ["close"]


async def test_it_takes_no_channel_of_the_layer() -> None:
    assert UserEventStreamView.channel_messages is False


# Who is meant


@pytest.mark.parametrize(
    "named",
    [
        lambda one: one,
        lambda one: one.pk,
        lambda one: str(one.pk),
        lambda one: SimpleLazyObject(lambda: User.objects.get(pk=one.pk)),
    ],
    ids=["user", "key", "text", "lazy"],
)
async def test_a_user_may_be_named_by_its_key(named: Callable[[User], Any]) -> None:
    ada = await user()
    async with stream(await logged_in(), url=MINE) as reader:
        await apublish_to_user(named(ada), "async")
        await sync_to_async(publish_to_user)(named(ada), "sync")
        assert data([await reader.next_event(), await reader.next_event()]) == ["async", "sync"]


@pytest.mark.parametrize(
    ("nobody", "error", "says"),
    [
        (AnonymousUser(), ValueError, "give a user who is logged in, or its primary key"),
        (None, ValueError, "give a user who is logged in"),
        (User(username="new"), ValueError, "save it first"),
        (HttpRequest(), TypeError, "user or its primary key, not HttpRequest"),
        (True, TypeError, "user or its primary key, not bool"),
    ],
)
async def test_nobody_cannot_be_told_anything(
    nobody: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await apublish_to_user(nobody, "hi")
    with pytest.raises(error, match=says):
        await sync_to_async(publish_to_user)(nobody, "hi")


async def test_the_event_is_checked_like_any_other() -> None:
    with pytest.raises(InvalidEvent):
        await apublish_to_user(await user(), "hi", event="close")
    with pytest.raises(SynchronousOnlyOperation, match=r"await apublish_to_user\(\)"):
        publish_to_user(7, "hi")


# The group


KEYS = [7, "7.1", "7_2e1", "7/1", "", "é", "ada@example.com", "x" * 200, uuid.UUID(int=7)]


def test_each_key_has_a_group_of_its_own_that_channels_accepts() -> None:
    owners = [*KEYS, "x" * 201, uuid.UUID(int=8), Scanner(pk=7), Scanner(pk=8)]
    names = [user_group(owner) for owner in owners]
    assert [validate_group(name) for name in names] == names
    assert len(set(names)) == len(names)
    assert user_group(7) == "sse.user.7" == user_group("07")


async def test_the_group_is_for_what_takes_groups() -> None:
    ada, grace = await user("ada"), await user("grace")
    here = await aposition(user_group(ada))
    await apublish_many([(user_group(each), "to both") for each in (ada, grace)])
    async with stream(await logged_in("ada"), here, MINE) as reader:
        assert (await reader.next_event()).data == "to both"


async def test_no_argument_of_a_url_makes_a_users_group() -> None:
    response = await AsyncClient().get(f"/any/{user_group(await user())}/")
    assert response.status_code == 404
    async with reading(await AsyncClient().get("/any/sse.users/")) as reader:
        await reader.opened()
    # Nor does any other text.
    assert group_name("sse.user.7") != user_group(7)


async def test_users_of_different_tenants_are_kept_apart(settings: Settings) -> None:
    settings.DJANGO_SSE = NAMESPACE
    client = await logged_in()
    ada = await user()
    with entered("north"):
        response = await answer(client, url=MINE)
    async with reading(response) as reader:
        for tenant in ("south", "north"):
            with entered(tenant):
                await apublish_to_user(ada, f"of the {tenant}")
        assert (await reader.next_event()).data == "of the north"
