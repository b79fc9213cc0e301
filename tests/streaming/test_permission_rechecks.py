"""Views are asked again: how many at once, about which users, and what happens if they fail."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from threading import Event as ThreadEvent
from threading import current_thread, local
from threading import enumerate as threads
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.contrib import auth
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied, SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings

from django_sse import Event, apublish
from django_sse.groups.entries import closing_wire
from django_sse.streaming import permission_rechecks
from django_sse.views import EventGeneratorView, EventStreamView
from tests.clients import Client, connected
from tests.failures import Panic, SilentCache
from tests.streams import EventReader, News, goes_on, open_stream, reading, until
from tests.users import answer, logged_in, rotate, stream, user

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("often", "everything_ends"),
]

Answer = Callable[[], Awaitable[bool]]


@pytest.fixture
def often(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1, "RETRY": 1000}
    monkeypatch.setattr(permission_rechecks, "_RETRY_SECONDS", 0.05)


class Asked(EventStreamView):
    """Answers as a test wants it; it is asked the more often, the more answers there are."""

    groups = ["news"]
    answers: ClassVar[list[Answer]] = []
    asked: ClassVar[int] = 0

    async def still_allowed(self) -> bool:
        type(self).asked += 1
        return await (self.answers.pop(0) if self.answers else yes)()


class OfAnotherClass(Asked):
    answers: ClassVar[list[Answer]] = []


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


async def forever() -> bool:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


def raising(error: BaseException, cause: BaseException | None = None) -> Answer:
    async def answer() -> bool:
        raise error from cause

    return answer


def held_up() -> tuple[asyncio.Event, asyncio.Event, Answer]:
    """Return what is set when an answer is asked for, what lets it go on, and the answer: yes."""
    asking, goes_on = asyncio.Event(), asyncio.Event()

    async def waiting() -> bool:
        asking.set()
        return await goes_on.wait()

    return asking, goes_on, waiting


async def cancelled_itself() -> bool:
    asking = asyncio.create_task(asyncio.sleep(3600))
    asking.cancel()
    await asking
    return True


@asynccontextmanager
async def asked(
    *answers: Answer, view: type[Asked] = Asked, last_event_id: str | None = None
) -> AsyncIterator[EventReader]:
    view.answers, view.asked = list(answers), 0
    async with open_stream(view.as_view(), last_event_id=last_event_id) as reader:
        yield reader


# Several at once


_of_thread = local()


class SetsItsTenant(EventStreamView):
    """Tells its database connection whose rows it may read, then reads them."""

    groups = ["news"]
    found: ClassVar[set[tuple[str, str]]] = set()

    async def still_allowed(self) -> bool:
        tenant = self.kwargs["tenant"]
        await sync_to_async(setattr)(_of_thread, "tenant", tenant)
        for _ in range(10):
            await asyncio.sleep(0)
        self.found.add((tenant, await sync_to_async(getattr)(_of_thread, "tenant")))
        return True


async def test_what_a_view_sets_in_its_connection_answers_no_question_about_another_stream() -> (
    None
):
    SetsItsTenant.found.clear()
    tenants = {"north", "south", "east"}
    async with AsyncExitStack() as stack:
        for tenant in tenants:
            await stack.enter_async_context(open_stream(SetsItsTenant.as_view(), tenant=tenant))
        await until(lambda: {tenant for tenant, _ in SetsItsTenant.found} == tenants)
    assert SetsItsTenant.found == {(tenant, tenant) for tenant in tenants}


class Crowd:
    """Streams whose questions wait for the test."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.released: list[int] = []
        self.most = 0
        self._gates: dict[int, asyncio.Future[bool]] = {}
        self._stack = AsyncExitStack()

    async def open(self, count: int) -> None:
        for n in range(count):
            await self._stack.enter_async_context(
                connected("news", still_allowed=partial(self._answer, n))
            )

    async def _answer(self, n: int) -> bool:
        self.waiting.append(n)
        self.most = max(self.most, len(self.waiting))
        self._gates[n] = asyncio.get_running_loop().create_future()
        return await self._gates[n]

    async def release_next(self, least: int) -> None:
        """Let the first of those who wait go on, once there are enough of them."""
        await until(lambda: len(self.waiting) >= least)
        n = self.waiting.pop(0)
        self.released.append(n)
        self._gates.pop(n).set_result(True)

    async def __aenter__(self) -> "Crowd":
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.aclose()


def was_told(client: Client) -> list[str | None]:
    return [event.event for event in client.events]


async def test_a_permission_that_was_taken_away_ends_its_stream_while_300_others_wait() -> None:
    async with connected("news", still_allowed=no) as revoked, Crowd() as crowd:
        await crowd.open(300)
        await until(lambda: was_told(revoked) == ["close"])
        await until(lambda: crowd.waiting)
        assert crowd.released == []


async def test_nine_who_wait_hold_up_nobody() -> None:
    async with Crowd() as crowd:
        await crowd.open(9)
        async with AsyncExitStack() as stack:
            quick = [
                await stack.enter_async_context(connected("news", still_allowed=no))
                for _ in range(30)
            ]
            await until(lambda: all(was_told(client) == ["close"] for client in quick))
        assert len(crowd.waiting) == 9
        assert crowd.released == []


async def test_views_that_are_slow_put_a_revocation_off_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permission_rechecks, "_SLOT_SECONDS", 0.01)
    async with Crowd() as crowd:
        await crowd.open(100)
        async with connected("news", still_allowed=no) as revoked:
            await until(lambda: was_told(revoked) == ["close"])
        assert len(crowd.waiting) == 100
        assert crowd.released == []


async def test_ten_are_asked_at_once_and_the_longest_unasked_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permission_rechecks, "_SLOT_SECONDS", 3600)
    async with Crowd() as crowd:
        await crowd.open(25)
        for turn in (1, 2):
            while len(crowd.released) < 25 * turn:
                await crowd.release_next(min(25 * turn - len(crowd.released), 10))
            assert crowd.released == [*range(25)] * turn
        assert crowd.most == 10


async def test_who_is_slow_to_answer_is_not_asked_about_twice_at_once() -> None:
    async with Crowd() as crowd, asked() as other:
        await crowd.open(1)
        await until(lambda: crowd.waiting and Asked.asked >= 3)
        assert crowd.most == 1
        await goes_on(other)


# Users and sessions


STAFF = "/staff/"


class StaffOnly(News):
    """Checks again, now and then, whether its user is still staff."""

    asked_in: ClassVar[set[str]] = set()

    async def still_allowed(self) -> bool:
        self.asked_in.add(await sync_to_async(lambda: current_thread().name)())
        user = await self.request.auser()
        if not user.is_authenticated:
            raise PermissionDenied
        return bool(user.is_staff)


class Rooms(News):
    """Makes a query with its user, who may be anonymous."""

    async def still_allowed(self) -> bool:
        user: Any = await self.request.auser()
        return await Permission.objects.exclude(user=user).aexists()


class Undecided(News):
    """Reads the database, and then never answers."""

    asked_on: ClassVar[list[BaseDatabaseWrapper]] = []

    async def still_allowed(self) -> bool:
        await User.objects.acount()
        self.asked_on.append(await sync_to_async(lambda: connections["default"])())
        await asyncio.Event().wait()
        return True


class OfUsers(Asked):
    """Has a filter that reads the user, as it may: the user was read before."""

    def filter_event(self, event: Event) -> Event | None:
        return Event(f"{event.data} for {self.request.user}")


class GeneratesForUsers(EventGeneratorView):
    """Yields the user, again and again, while the view is asked about the user."""

    answers: ClassVar[list[Answer]] = []

    async def events(self) -> AsyncIterator[str]:
        request = self.request
        while True:
            assert request.user == await request.auser()
            yield str(request.user)
            await asyncio.sleep(0)

    async def still_allowed(self) -> bool:
        return await (self.answers.pop(0) if self.answers else yes)()


urlpatterns = [
    path("staff/", StaffOnly.as_view()),
    path("of-users/", OfUsers.as_view()),
    path("generated/", GeneratesForUsers.as_view()),
    path("rooms/", Rooms.as_view()),
    path("undecided/", Undecided.as_view()),
    path("rotate/", rotate),
]


@pytest.fixture
def asked_often(settings: Settings, often: None) -> None:
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1, "SYNC_INTERVAL": 3600}


@pytest.mark.usefixtures("asked_often")
@pytest.mark.parametrize("how", ["permission", "session"])
async def test_a_view_ends_streams_whose_permission_is_gone(how: str) -> None:
    """The view sees the user and the session as they are now, not as the request saw them."""
    tab, other = await logged_in(), await logged_in("eve")
    await User.objects.aupdate(is_staff=True)
    async with stream(tab, url=STAFF) as ended, stream(other, url=STAFF) as going_on:
        if how == "permission":
            await User.objects.filter(username="ada").aupdate(is_staff=False)
        else:
            await Session.objects.filter(pk=tab.cookies["sessionid"].value).adelete()
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})
        await goes_on(going_on)


@pytest.mark.usefixtures("asked_often")
async def test_a_filter_has_its_user_while_the_view_is_asked() -> None:
    asking, goes_on, waiting = held_up()
    OfUsers.answers = [waiting]
    async with stream(await logged_in(), url="/of-users/") as reader:
        await asking.wait()
        await apublish("news", "meanwhile")
        assert (await reader.next_event()).data == "meanwhile for ada"
        goes_on.set()
        await apublish("news", "afterwards")
        assert (await reader.next_event()).data == "afterwards for ada"


async def test_a_generator_has_its_user_while_the_view_is_asked(settings: Settings) -> None:
    # Nothing but the view is to see the end of the session.
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1, "END_WITH_LOGIN": False}
    asking, goes_on, waiting = held_up()
    GeneratesForUsers.answers = [waiting]
    async with stream(await logged_in(), url="/generated/") as reader:
        # Its session ends, of which the view that is asked knows first.
        await Session.objects.all().adelete()
        while not asking.is_set():
            assert (await reader.next_event()).data == "ada"
        for _ in range(100):
            assert (await reader.next_event()).data == "ada"
        goes_on.set()


def logs_in(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Logs a user in during the request itself, as Django's RemoteUserMiddleware does."""

    async def middleware(request: HttpRequest) -> Any:
        if key := request.headers.get("X-User"):
            await auth.alogin(
                request,
                await User.objects.aget(pk=key),
                backend="django.contrib.auth.backends.ModelBackend",
            )
        return await get_response(request)

    return middleware


setattr(logs_in, "async_capable", True)  # noqa: B010
setattr(logs_in, "sync_capable", False)  # noqa: B010


@pytest.mark.parametrize("how", ["not staff", "logged out"])
async def test_a_view_sees_what_has_changed_about_a_user_whom_the_request_logged_in(
    how: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.logs_in"]
    settings.DJANGO_SSE = {"RECHECK_INTERVAL": 1, "END_WITH_LOGIN": False}
    ada = await user()
    await User.objects.filter(pk=ada.pk).aupdate(is_staff=True)
    async with reading(await AsyncClient().get(STAFF, headers={"X-User": str(ada.pk)})) as ended:
        await goes_on(ended)
        if how == "not staff":
            await User.objects.aupdate(is_staff=False)
        else:
            await Session.objects.all().adelete()
        assert [event.event for event in await ended.rest()] == ["close"]


def sync_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    return lambda request: get_response(request)


setattr(sync_middleware, "async_capable", False)  # noqa: B010


@pytest.mark.usefixtures("asked_often")
async def test_a_view_below_a_sync_middleware_can_be_asked(settings: Settings) -> None:
    """The request's thread has ended, so the view gets another one."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.sync_middleware"]
    StaffOnly.asked_in.clear()
    ada = await User.objects.acreate(username="ada", is_staff=True)
    async with stream(await logged_in(), url=STAFF) as ended:
        await until(lambda: StaffOnly.asked_in)
        await goes_on(ended)
        await User.objects.filter(pk=ada.pk).aupdate(is_staff=False)
        [close] = await ended.rest()
        assert close.json() == {"reason": "not allowed any more"}


@pytest.mark.usefixtures("asked_often")
async def test_a_query_with_the_user_of_a_session_that_is_gone_means_no() -> None:
    """Once the session is gone, the user is anonymous, and the query raises."""
    tab, other = await logged_in(), await logged_in("eve")
    async with stream(tab, url="/rooms/") as ended, stream(other, url="/rooms/") as going_on:
        await tab.get("/rotate/")
        [close] = await ended.rest()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})
        await goes_on(going_on)


@pytest.mark.usefixtures("asked_often")
async def test_a_session_that_cannot_be_read_shuts_no_stream(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    settings.CACHES = {"default": {"BACKEND": "tests.failures.SilentCache"}}
    tab = await logged_in()
    await User.objects.aupdate(is_staff=True)
    async with stream(tab, url=STAFF) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(SilentCache, "is_away", True)
            # It cannot be asked twice in a row, and its client is to come back.
            assert await reader.rest() == []
            assert reader.reconnection_time
            assert (await answer(tab, reader.last_event_id, STAFF)).status_code == 503
    await apublish("news", "missed")
    async with stream(tab, reader.last_event_id, STAFF) as again:
        assert (await again.next_event()).data == "missed"


# Failures


SURROUNDINGS = [
    pytest.param(raising(OperationalError("gone")), id="OperationalError"),
    pytest.param(raising(InterfaceError("closed")), id="InterfaceError"),
    pytest.param(raising(ConnectionResetError()), id="ConnectionResetError"),
    pytest.param(raising(TimeoutError()), id="TimeoutError"),
    pytest.param(raising(RuntimeError("a library's"), OSError("its reason")), id="with a cause"),
    pytest.param(raising(RuntimeError("can't start new thread")), id="no thread"),
    pytest.param(raising(MemoryError()), id="no memory"),
    pytest.param(raising(ExceptionGroup("several", [OperationalError(), OSError()])), id="several"),
]


@pytest.mark.parametrize("failure", SURROUNDINGS)
async def test_a_view_whose_surroundings_fail_twice_has_its_client_come_back(
    failure: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    async with asked(failure, failure) as reader:
        await goes_on(reader)
        assert await reader.rest() == []
        assert reader.reconnection_time
        assert Asked.asked == 2
    assert caplog.text.count("still_allowed of Asked failed") == 1
    assert "Traceback" in caplog.text
    # It is authorized anew, and has missed nothing.
    await apublish("news", "missed")
    async with asked(last_event_id=reader.last_event_id) as again:
        assert (await again.next_event()).data == "missed"


@pytest.mark.parametrize("failure", SURROUNDINGS)
async def test_a_view_whose_surroundings_fail_once_is_asked_again_soon(failure: Answer) -> None:
    async with asked(failure, yes, failure, yes) as reader:
        await until(lambda: Asked.asked >= 5)
        await goes_on(reader)


async def test_a_view_that_says_no_after_a_failure_is_heard() -> None:
    async with asked(raising(OperationalError()), no) as reader:
        assert [event.event for event in await reader.rest()] == ["close"]


async def test_a_view_that_never_answers_has_its_client_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permission_rechecks, "_ANSWER_SECONDS", 0.05)
    async with asked(forever, forever) as reader:
        assert await reader.rest() == []
        assert reader.reconnection_time


async def test_views_that_cannot_be_cancelled_hold_up_no_other_one_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permission_rechecks, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(permission_rechecks, "_GRACE_SECONDS", 0.05)
    released = asyncio.Event()

    async def stubborn() -> bool:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        raise RuntimeError("Nobody waits for this.")

    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(connected("news", still_allowed=stubborn))
        revoked = await stack.enter_async_context(connected("news", still_allowed=no))
        await until(lambda: "close" in was_told(revoked))
        released.set()


def caused_by_itself() -> Answer:
    error = ValueError()
    return raising(error, error)


@pytest.mark.parametrize(
    "failure",
    [
        raising(PermissionDenied()),
        raising(TypeError("Field 'id' expected a number but got AnonymousUser")),
        raising(User.DoesNotExist()),
        caused_by_itself(),
        cancelled_itself,
        raising(Panic()),
        raising(BaseExceptionGroup("several", [Panic()])),
    ],
)
async def test_every_other_failure_of_a_view_is_a_no(failure: Answer) -> None:
    async with asked(failure) as reader:
        [close] = await reader.rest()
        assert (close.event, close.json()) == ("close", {"reason": "not allowed any more"})


@pytest.mark.parametrize(
    ("answer", "told"),
    [(HttpResponse, "not HttpResponse"), (no, "`await` it"), (lambda: "no", "not str")],
    ids=["response", "coroutine", "text"],
)
async def test_an_answer_that_is_true_without_being_meant_so_is_a_no(
    answer: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answers() -> Any:
        return answer()

    async with asked(answers) as reader:
        assert [event.event for event in await reader.rest()] == ["close"]
    assert "still_allowed of Asked failed: this counts as a no." in caplog.text
    assert told in caplog.text


class Unreadable:
    """An answer whose truth is a query, as a QuerySet's is."""

    def __bool__(self) -> bool:
        raise SynchronousOnlyOperation


async def test_an_answer_whose_truth_cannot_be_told_is_a_no() -> None:
    async def answer() -> Any:
        return Unreadable()

    async with asked(answer) as reader:
        assert [event.event for event in await reader.rest()] == ["close"]


async def test_a_failure_is_given_time_before_the_view_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 4, "RETRY": 1000}
    monkeypatch.setattr(permission_rechecks, "_RETRY_SECONDS", 0.5)
    times: list[float] = []

    async def fail_once() -> bool:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise OperationalError
        return True

    async with connected("news", still_allowed=fail_once) as _:
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.5


async def test_failures_of_many_streams_are_logged_once_for_each_view(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = raising(ZeroDivisionError())
    async with AsyncExitStack() as stack:
        for view in (Asked, OfAnotherClass):
            view.answers = [failure] * 20
            readers = [
                await stack.enter_async_context(open_stream(view.as_view())) for _ in range(20)
            ]
            for reader in readers:
                assert [event.event for event in await reader.rest()] == ["close"]
    assert caplog.text.count("still_allowed of Asked failed") == 1
    assert caplog.text.count("still_allowed of OfAnotherClass failed") == 1
    assert caplog.text.count("ZeroDivisionError") >= 2


async def test_a_query_for_a_user_who_is_none_any_more_is_a_no() -> None:
    """It raises a TypeError, just when the session has ended."""

    class Rooms(EventStreamView):
        groups = ["news"]

        async def still_allowed(self) -> bool:
            return await User.objects.filter(pk=AnonymousUser()).aexists()  # type: ignore[misc]

    async with open_stream(Rooms.as_view()) as reader:
        assert [event.event for event in await reader.rest()] == ["close"]


# Threads and connections


async def test_a_view_whose_thread_hangs_holds_up_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permission_rechecks, "_ANSWER_SECONDS", 0.5)
    release = ThreadEvent()
    names: list[str] = []

    def hang() -> None:
        names.append(current_thread().name)
        release.wait()

    async def hanging() -> bool:
        await sync_to_async(hang)()
        return True

    async def in_thread() -> bool:
        await User.objects.acount()
        return False

    try:
        async with (
            asked(hanging, hanging) as hung,
            asked(in_thread, in_thread, view=OfAnotherClass) as revoked,
        ):
            assert [event.event for event in await revoked.rest()] == ["close"]
            assert await hung.rest() == []
            assert len(set(names)) == 2
    finally:
        release.set()
    await until(lambda: set(names).isdisjoint({thread.name for thread in threads()}))


async def test_a_broken_connection_is_not_asked_by_again() -> None:
    used: list[Any] = []

    def break_connection() -> None:
        connection = connections["default"]
        connection.ensure_connection()
        used.append(connection.connection)
        connection.connection.close()

    async def broken() -> bool:
        await sync_to_async(break_connection)()
        return await User.objects.acount() == 0

    async def unbroken() -> bool:
        count = await User.objects.acount()
        used.append(await sync_to_async(lambda: connections["default"].connection)())
        return count == 0

    async with asked(broken, unbroken) as reader:
        await until(lambda: len(used) == 2)
        assert used[0] is not used[1]
        await goes_on(reader)


@pytest.mark.usefixtures("asked_often")
async def test_asking_views_leaves_no_thread_and_no_connection() -> None:
    StaffOnly.asked_in.clear()
    await User.objects.acreate(username="ada", is_staff=True)
    async with stream(await logged_in(), url=STAFF):
        await until(lambda: StaffOnly.asked_in)
        # The threads belong to the pool of one round, which has ended.
        await until(lambda: StaffOnly.asked_in.isdisjoint({thread.name for thread in threads()}))


@pytest.mark.usefixtures("asked_often")
async def test_a_view_that_is_asked_while_the_last_stream_ends_leaves_no_connection() -> None:
    Undecided.asked_on.clear()
    async with stream(AsyncClient(), url="/undecided/"):
        await until(lambda: Undecided.asked_on)
        [used] = Undecided.asked_on
        assert used.connection is not None
    await until(lambda: used.connection is None)


async def test_a_log_that_fails_keeps_no_stream_open() -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise AttributeError("There is no request.")

    logger = logging.getLogger("django_sse")
    logger.addFilter(fail)
    try:
        async with asked(raising(ValueError())) as reader:
            assert [event.event for event in await reader.rest()] == ["close"]
    finally:
        logger.removeFilter(fail)


async def test_a_stream_that_could_not_be_ended_is_asked_about_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [MemoryError()]

    def scarce(reason: str | None) -> bytes:
        if failures:
            raise failures.pop()
        return closing_wire(reason)

    monkeypatch.setattr(permission_rechecks, "closing_wire", scarce)
    async with asked(no, no) as reader:
        assert [event.event for event in await reader.rest()] == ["close"]
    assert not failures
