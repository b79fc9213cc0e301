"""Streams in tests that are not async, and in the transaction of a ``TestCase``."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.http import HttpRequest
from django.test import AsyncClient, Client, TestCase, TransactionTestCase, override_settings
from django.urls import path

from django_sse import Event, apublish, cancel, publish
from django_sse.access.logins import LoginCheck, check_logins
from django_sse.access.owners import Login
from django_sse.decorators import event_generator, event_stream
from django_sse.mixins import LoginRequiredMixin
from django_sse.streaming import permission_rechecks, rechecks
from django_sse.streaming.hub import open_streams
from django_sse.testing import EventStream, EventStreamTestMixin, open_stream
from django_sse.views import EventStreamView
from tests.streams import TIMEOUT
from tests.urls import urlpatterns as of_project
from tests.users import FindsEveryone

NEWS = "/events/news/"
SOON = 1.5
MEMORY = {"STORE": "memory"}
# Seconds between two checks of a login, of which the second one counts.
OFTEN = 0.02


@event_generator
async def names(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event("first")
    await asyncio.sleep(0)
    # The request is over by now.
    yield Event([user.username async for user in User.objects.all()])
    await asyncio.Event().wait()


@event_stream("seen")
async def echoing(request: HttpRequest) -> None:
    """Let everybody in."""
    user = await request.auser()
    await apublish("seen", [request.headers.get("X-Of-Client"), user.username])


@event_generator
async def describing(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event(
        {
            "host": request.get_host(),
            "address": request.META["REMOTE_ADDR"],
            "query": request.GET.get("q"),
            "cookies": request.COOKIES,
            "header": request.headers.get("X-Of-Test"),
            "scheme": request.scheme,
        }
    )


async def described(request: HttpRequest) -> Any:
    response = await describing(request)
    response.set_cookie("of-view", "set")
    return response


@event_generator
async def posted(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event(request.POST["prompt"])


class LoginRequired(LoginRequiredMixin, EventStreamView):
    groups = ["news"]


class UrlConf:
    urlpatterns = [
        *of_project,
        path("names/", names),
        path("echoing/", echoing),
        path("describing/", described),
        path("posted/", posted),
        path("login-required/", LoginRequired.as_view()),
    ]


def ada(client: Any) -> User:
    user = User.objects.create(username="ada")
    client.force_login(user)
    return user


def look_on(stream: EventStream, condition: Callable[[], bool]) -> None:
    """Wait until something has become true. Meanwhile nothing comes."""
    ends = monotonic() + TIMEOUT
    while not condition():
        assert monotonic() < ends
        stream.nothing(seconds=OFTEN)


class Expectations:
    """The same in a ``TestCase`` and in a ``TransactionTestCase``."""

    client: Any

    def test_the_next_event_comes(self) -> None:
        with open_stream(self.client, NEWS) as stream:
            stream.nothing()
            published = publish("news", {"title": "hi"}, event="headline")
            event = stream.next("headline")
            assert event.json() == {"title": "hi"}
            assert published.number is None or event.id == published.id
            assert stream.last_event_id == event.id
            assert stream.status == 200
            assert [event.event for event in stream.events] == ["headline"]

    def test_a_failure_shows_what_came(self) -> None:
        with open_stream(self.client, NEWS, timeout=SOON) as stream:
            publish("news", "hi", event="headline")
            with pytest.raises(AssertionError) as raised:
                stream.nothing()
            assert "  > headline: hi" in str(raised.value)
            stream.next()
            with pytest.raises(AssertionError, match=r"did not come within 1\.5 seconds"):
                stream.next()

    def test_what_a_transaction_publishes_comes(self) -> None:
        with open_stream(self.client, NEWS) as stream:
            with transaction.atomic():
                publish("news", "one")
                publish("news", "two")
            with suppress(ZeroDivisionError), transaction.atomic():
                publish("news", "three")
                raise ZeroDivisionError
            assert [stream.next().data, stream.next().data] == ["one", "two"]
            stream.nothing()

    def test_what_waits_for_a_commit_is_named(self) -> None:
        with open_stream(self.client, NEWS, timeout=SOON) as stream:
            with transaction.atomic():
                publish("news", "one")
                with pytest.raises(AssertionError) as raised:
                    stream.next()
            assert "a transaction that is still open" in str(raised.value)
            stream.next()

    def test_a_stream_is_closed_and_reconnected(self) -> None:
        with open_stream(self.client, NEWS) as stream:
            publish("news", "one")
            stream.next()
            stream.reconnect()
            publish("news", "two")
            assert stream.next().data == "two"
            cancel("news", reason="done")
            stream.closed("done")
            stream.ended()
            assert stream.closed_with == "done"
            assert stream.reconnect().status == 204

    def test_the_login_and_the_headers_of_the_client_are_used(self) -> None:
        ada(self.client)
        self.client.defaults["HTTP_X_OF_CLIENT"] = "client"
        with (
            open_stream(self.client, "/events/seen/") as seen,
            open_stream(self.client, "/echoing/") as stream,
        ):
            assert stream.response.status_code == 200
            assert seen.next().json() == ["client", "ada"]

    def test_the_request_is_made_as_the_client_makes_it(self) -> None:
        class OfTenant(Client):
            def get(self, path: Any, *args: Any, **kwargs: Any) -> Any:
                User.objects.create(username="asked")
                return super().get(path, *args, **{"HTTP_HOST": "acme.localhost", **kwargs})

        client: Client = OfTenant(REMOTE_ADDR="10.0.0.1")
        client.cookies["of-client"] = "a b"
        with open_stream(client, "/describing/?q=ä", HTTP_X_OF_TEST="test") as stream:
            assert stream.next().json() == {
                "host": "acme.localhost",
                "address": "10.0.0.1",
                "query": "ä",
                "cookies": {"of-client": "a b"},
                "header": "test",
                "scheme": "http",
            }
            assert client.cookies["of-view"].value == "set"
        assert User.objects.filter(username="asked").exists()
        client = Client(SERVER_NAME="news.localhost")
        with open_stream(client, "/describing/", secure=True) as stream:
            said = stream.next().json()
            assert (said["host"], said["scheme"]) == ("news.localhost", "https")
        with open_stream(client, "/describing/", SERVER_PORT="8000") as stream:
            assert stream.next().json()["host"] == "news.localhost:8000"

    def test_a_form_is_posted_as_the_client_posts_it(self) -> None:
        with open_stream(self.client, "/posted/", method="post", data={"prompt": "hü"}) as stream:
            assert stream.next().data == "hü"

    def test_a_generator_sees_the_users_of_the_test(self) -> None:
        ada(self.client)
        with open_stream(self.client, "/names/") as stream:
            assert stream.next().data == "first"
            assert stream.next().json() == ["ada"]

    def test_nothing_is_left(self) -> None:
        with open_stream(self.client, NEWS), open_stream(self.client, NEWS):
            assert open_streams() == 2
        assert open_streams() == 0

    def test_a_refusal_that_nobody_looks_at_fails(self) -> None:
        with (
            pytest.raises(AssertionError, match="answered 404"),
            open_stream(self.client, "/nowhere/"),
        ):
            pass

    def test_an_async_client_does_as_well(self) -> None:
        with open_stream(AsyncClient(), NEWS) as stream:
            publish("news", "hi")
            stream.next()

    def test_the_login_of_a_user_of_the_test_is_valid(self) -> None:
        ada(self.client)
        with (
            checking_often() as checked,
            open_stream(self.client, NEWS, timeout=10) as stream,
        ):
            look_on(stream, lambda: len(checked) >= 2)
            publish("news", "hi")
            stream.next()
            stream.nothing()

    def test_the_stream_of_a_user_who_is_deactivated_is_closed(self) -> None:
        user = ada(self.client)
        with checking_often(), open_stream(self.client, NEWS, timeout=10) as stream:
            user.is_active = False
            user.save()
            stream.closed("logged out")

    def test_the_stream_of_a_session_that_is_gone_ends(self) -> None:
        ada(self.client)
        with checking_often(), open_stream(self.client, NEWS, timeout=10) as stream:
            self.client.session.flush()
            stream.ended()

    def test_a_logout_closes_the_stream_though_its_session_is_missed_first(self) -> None:
        ada(self.client)
        with checking_often(), open_stream(self.client, NEWS, timeout=10) as stream:
            self.client.logout()
            # Before an expectation, which publishes what waits for the commit.
            stream._run(stream._stream._connected.served())
            stream.closed("logged out")

    def test_a_custom_backend_finds_the_user_of_the_test(self) -> None:
        backend = f"{FindsEveryone.__module__}.{FindsEveryone.__qualname__}"
        with override_settings(AUTHENTICATION_BACKENDS=[backend]), checking_often():
            ada(self.client)
            FindsEveryone.asked = 0
            with open_stream(self.client, NEWS, timeout=10) as stream:
                look_on(stream, lambda: FindsEveryone.asked >= 3)

    def test_a_recheck_of_permissions_sees_the_user_of_the_test(self) -> None:
        user = ada(self.client)
        answered = []

        async def noted(question: Any) -> bool:
            answered.append(await question())
            return bool(answered[-1])

        with (
            patch.object(permission_rechecks, "_interval", lambda: OFTEN),
            patch.object(permission_rechecks, "_answer_of", noted),
            open_stream(self.client, "/login-required/", timeout=10) as stream,
        ):
            look_on(stream, lambda: len(answered) >= 2)
            assert answered[:2] == [True, True]
            user.delete()
            stream.closed("not allowed any more")


@contextmanager
def checking_often() -> Iterator[list[LoginCheck]]:
    """Logins are checked often, and the answers are noted."""
    checked: list[LoginCheck] = []

    def noted(logins: Collection[Login]) -> LoginCheck:
        checked.append(check_logins(logins))
        return checked[-1]

    with (
        override_settings(DJANGO_SSE={**MEMORY, "SYNC_INTERVAL": OFTEN}),
        patch.object(rechecks, "_AGAIN_SECONDS", OFTEN),
        patch.object(rechecks, "_PAUSE_FACTOR", 1),
        patch.object(rechecks, "check_logins", noted),
    ):
        yield checked


@override_settings(DJANGO_SSE=MEMORY, ROOT_URLCONF=UrlConf)
class InTestCase(Expectations, EventStreamTestMixin, TestCase):
    def test_hooks_of_the_project_stay_where_they_are(self) -> None:
        called: list[str] = []
        with open_stream(self.client, NEWS) as stream:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                transaction.on_commit(lambda: called.append("mine"))
                publish("news", "hi")
                stream.next()
                assert called == []
            assert called == ["mine"]
            assert len(callbacks) == 2
            stream.nothing()

    def test_captured_callbacks_publish_as_well(self) -> None:
        with open_stream(self.client, NEWS) as stream:
            with self.captureOnCommitCallbacks(execute=True):
                publish("news", "hi")
            stream.next()
            stream.nothing()

    @override_settings(DJANGO_SSE={})
    def test_the_database_store_is_refused(self) -> None:
        with (
            pytest.raises(ImproperlyConfigured, match="A TestCase never commits"),
            open_stream(self.client, NEWS),
        ):
            pass
        assert open_streams() == 0

    async def test_async_code_works_in_the_transaction(self) -> None:
        user = await User.objects.acreate(username="ada")
        await self.async_client.aforce_login(user)
        with checking_often() as checked:
            async with open_stream(self.async_client, NEWS, timeout=10) as stream:
                async with asyncio.timeout(TIMEOUT):
                    while len(checked) < 2:
                        await stream.nothing(seconds=OFTEN)
                await apublish("news", "hi")
                await stream.next()
                await stream.nothing()
        assert open_streams() == 0


@override_settings(DJANGO_SSE=MEMORY, ROOT_URLCONF=UrlConf)
class InTransactionTestCase(Expectations, EventStreamTestMixin, TransactionTestCase):
    @override_settings(DJANGO_SSE={})
    def test_the_database_store_works(self) -> None:
        with open_stream(self.client, NEWS) as stream:
            stream.nothing()
            publish("news", "hi")
            assert stream.next().data == "hi"
            with transaction.atomic():
                publish("news", "later")
            assert stream.next().data == "later"
            stream.nothing()


@pytest.fixture
def memory(settings: Any) -> None:
    settings.DJANGO_SSE = MEMORY


@pytest.mark.usefixtures("memory")
def test_a_stream_works_in_the_transaction_of_the_fixture_db(db: None, client: Client) -> None:
    assert connection.in_atomic_block
    ada(client)
    with open_stream(client, NEWS) as stream:
        publish("news", "hi")
        assert stream.next().data == "hi"
        stream.nothing()
