"""Users, the browsers that they have logged in with, and the streams that these open."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from django.conf import settings
from django.contrib import auth
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient

from tests.streams import EventReader, reading

NEWS = "/events/"


async def user(name: str = "ada") -> User:
    """Return the user of that name, a new one where there is none."""
    return (await User.objects.aget_or_create(username=name))[0]


async def logged_in(name: str = "ada") -> AsyncClient:
    """Return a browser with a session of its own."""
    client = AsyncClient()
    await client.aforce_login(await user(name))
    return client


def session_key(client: AsyncClient) -> str:
    return client.cookies[settings.SESSION_COOKIE_NAME].value


class FindsEveryone(BaseBackend):
    """Finds users in a custom way, such as in a directory."""

    missing: ClassVar[set[str]] = set()
    failure: BaseException | None = None
    asked = 0

    def get_user(self, user_id: Any) -> User | None:
        FindsEveryone.asked += 1
        if self.failure:
            raise self.failure
        user = User.objects.filter(pk=user_id).first()
        return None if user is None or user.username in self.missing else user


# Pages


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse(status=204)


def rotate(request: HttpRequest) -> HttpResponse:
    """Give the session another key, as a project does after it has asked for a second factor."""
    request.session.cycle_key()
    return HttpResponse(status=204)


# Streams


async def answer(client: AsyncClient, last_event_id: str = "", url: str = NEWS) -> HttpResponseBase:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    return await client.get(url, headers=headers)


@asynccontextmanager
async def stream(
    client: AsyncClient, last_event_id: str = "", url: str = NEWS
) -> AsyncIterator[EventReader]:
    async with reading(await answer(client, last_event_id, url)) as reader:
        yield reader


async def assert_sent_back_for_good(ended: EventReader, client: AsyncClient) -> None:
    """The stream ends so that its client comes back, and the client is told to stop then."""
    assert await ended.rest() == []
    assert ended.reconnection_time
    assert (await answer(client, ended.last_event_id)).status_code == 204
