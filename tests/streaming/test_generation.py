"""Generators whose requests are over: what ends them, what they may use, and what they hold."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished
from django.db import connections
from django.http import HttpRequest
from django.test import override_settings
from django.urls import path
from django.utils import translation
from pytest_django import Settings

from django_sse import Event, acancel
from django_sse.asgi import get_asgi_application
from django_sse.decorators import event_generator
from django_sse.exceptions import Close
from django_sse.groups.position import LEFT_MARK, TERMINAL_MARK
from django_sse.stores import get_store
from django_sse.views import EventGeneratorView
from tests import postgresql
from tests.groups.test_namespaces import OF_THREAD, current_of_thread, thread_entered
from tests.http.test_asgi import Request, streaming
from tests.streams import get, open_stream, respond, until

pytestmark = [
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("generated"),
]


class Generated:
    """What the generators of a test have noted."""

    begun = 0
    closed = 0
    threads: ClassVar[set[threading.Thread]] = set()
    running = most_running = 0

    @classmethod
    def run(cls) -> threading.Thread:
        """Note how many such calls run at the same time."""
        cls.running += 1
        cls.most_running = max(cls.most_running, cls.running)
        threading.Event().wait(0.01)
        cls.running -= 1
        return threading.current_thread()


@pytest.fixture
async def generated() -> AsyncIterator[None]:
    Generated.begun = Generated.closed = Generated.running = Generated.most_running = 0
    Generated.threads.clear()
    yield
    await until(lambda: Generated.begun == Generated.closed)


class Forever(EventGeneratorView):
    allowed = True

    async def events(self) -> AsyncIterator[Event]:
        Generated.begun += 1
        try:
            yield Event("begun", id="1")
            await asyncio.Event().wait()
        finally:
            # It has something to clean up, and nothing may cut that short.
            await asyncio.sleep(0.01)
            Generated.closed += 1

    async def still_allowed(self) -> bool:
        return Forever.allowed


class Of(Forever):
    """The owner is named in the URL."""

    async def get_owner(self) -> Any:
        return self.kwargs["user"]


@event_generator
async def users(request: HttpRequest) -> AsyncIterator[int]:
    """Ask the database, again and again."""
    for _ in range(3):
        Generated.threads.add(await sync_to_async(Generated.run)())
        yield await User.objects.acount()
        await asyncio.sleep(0.01)


class Staying(EventGeneratorView):
    """Asks the database, in its request."""

    stays_in_request = True

    async def events(self) -> AsyncIterator[int]:
        for _ in range(2):
            yield await User.objects.acount()
            await asyncio.sleep(0.01)


def sync_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    return lambda request: get_response(request)


class Hanging(EventGeneratorView):
    """Wait in a blocking call."""

    begun = threading.Event()
    ends = threading.Event()

    async def events(self) -> AsyncIterator[Event]:
        await sync_to_async(self.begun.set)()
        await sync_to_async(self.ends.wait)(10)
        yield Event("at last")


class Calling(EventGeneratorView):
    """Make blocking calls, which hang for one of the users."""

    begun: ClassVar[threading.Semaphore]
    goes_on: ClassVar[threading.Event]

    async def get_owner(self) -> Any:
        return self.kwargs["user"]

    async def events(self) -> AsyncIterator[str]:
        yield "begun"
        await sync_to_async(self._call)()
        yield "called"

    def _call(self) -> None:
        if self.kwargs["user"] == "slow":
            self.begun.release()
            self.goes_on.wait(20)


@event_generator
async def of_tenant(request: HttpRequest) -> AsyncIterator[str]:
    """Tell the connection of a tenant, and ask who the tenant is, again and again."""
    name = request.GET["tenant"]
    yield "begun"
    for _ in range(20):
        before = await sync_to_async(_tell_connection)(name)
        yield f"{before or 'nobody'} {await sync_to_async(current_of_thread)()}"


def _tell_connection(name: str) -> str:
    """Set the tenant of the connection, and return which one it was of."""
    with connections[postgresql.ALIAS].cursor() as cursor:
        cursor.execute("SELECT current_setting('app.tenant', true)")
        [before] = cursor.fetchone()
        cursor.execute("SELECT set_config('app.tenant', %s, false)", [name])
    return before or ""


class InTenant:
    """The middleware of a project that keeps the tenant in the thread of the request."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        with thread_entered(request.GET["tenant"]):
            return self.get_response(request)


@event_generator
async def localized(request: HttpRequest) -> AsyncIterator[str | None]:
    yield translation.get_language()


@event_generator
async def posted(request: HttpRequest) -> AsyncIterator[Any]:
    yield request.POST.get("text", "") or request.body.decode()


@event_generator(stays_in_request=True)
async def posted_files(request: HttpRequest) -> AsyncIterator[Any]:
    file: Any = request.FILES["file"]
    yield file.read().decode()


@event_generator(stays_in_request=True)
async def read(request: HttpRequest) -> AsyncIterator[int]:
    yield len(request.read())


@event_generator
async def endless(request: HttpRequest) -> AsyncIterator[str]:
    Generated.begun += 1
    try:
        while True:
            yield "x" * 1000
    finally:
        Generated.closed += 1


@event_generator
async def saving(request: HttpRequest) -> AsyncIterator[str]:
    """Await something to close itself."""
    Generated.begun += 1
    try:
        while True:
            yield "x"
            await asyncio.sleep(0)
    finally:
        Generated.threads.add(await sync_to_async(threading.current_thread)())
        Generated.closed += 1


urlpatterns = [
    path("forever/", Forever.as_view()),
    path("of/<str:user>/", Of.as_view()),
    path("users/", users),
    path("staying/", Staying.as_view()),
    path("hanging/", Hanging.as_view()),
    path("calling/<str:user>/", Calling.as_view()),
    path("of-tenant/", of_tenant),
    path("localized/", localized),
    path("posted/", posted),
    path("posted/files/", posted_files),
    path("read/", read),
    path("endless/", endless),
    path("saving/", saving),
]


@asynccontextmanager
async def handed_off(url: str, **scope: Any) -> AsyncIterator[Request]:
    """A stream that goes on after its request."""
    finished = threading.Event()

    def note(**kwargs: Any) -> None:
        finished.set()

    request_finished.connect(note)
    try:
        async with streaming(get_asgi_application(), url, **scope) as request:
            assert await asyncio.to_thread(finished.wait, 10)
            yield request
    finally:
        request_finished.disconnect(note)


def reasons(events: list[Event]) -> list[Any]:
    return [event.json()["reason"] for event in events if event.event == "close"]


@pytest.mark.usefixtures("memory_store")
class TestEnds:
    @pytest.mark.parametrize(
        ("result", "data"),
        [
            ({"url": "/7/"}, {"reason": "ok", "result": {"url": "/7/"}}),
            (object(), {"reason": "failed"}),
        ],
    )
    async def test_its_end_may_have_a_result(self, result: Any, data: Any) -> None:
        class Reporting(EventGeneratorView):
            async def events(self) -> AsyncIterator[Event]:
                yield Event("begun")
                raise Close("ok", result)

        async with open_stream(Reporting.as_view()) as stream:
            assert (await stream.rest())[-1].json() == data

    async def test_a_client_that_disconnects_closes_the_generator(self) -> None:
        async with handed_off("/forever/") as stream:
            await stream.next_events()
            assert (Generated.begun, Generated.closed) == (1, 0)
            await stream.disconnect()
            await until(lambda: Generated.closed)

    async def test_a_server_that_cuts_it_off_closes_the_generator(self) -> None:
        async with handed_off("/forever/") as stream:
            await stream.next_events()
            await stream.cut_off()
            await until(lambda: Generated.closed)
            assert stream.decoder.last_event_id == "1"

    async def test_a_kick_ends_it_for_good(self) -> None:
        async with handed_off("/of/7/") as kicked, handed_off("/of/8/") as other:
            await kicked.next_events()
            await other.next_events()
            await acancel(user="7", reason="kicked")
            assert reasons(await kicked.rest()) == ["kicked"]
            await until(lambda: Generated.closed == 1)
        assert (await respond(Of.as_view(), kwargs={"user": "7"})).status_code == 204

    async def test_an_answer_of_no_ends_it_for_good(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.DJANGO_SSE = {"STORE": "memory", "RECHECK_INTERVAL": 1}
        monkeypatch.setattr(Forever, "allowed", False)
        async with handed_off("/forever/") as stream:
            assert reasons(await stream.rest()) == ["not allowed any more"]

    async def test_one_that_is_too_old_comes_back(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
        settings.DJANGO_SSE = {"STORE": "memory", "MAX_AGE": 1}
        async with handed_off("/forever/") as stream:
            await stream.next_events()
            assert reasons(await stream.rest()) == []
            assert stream.decoder.last_event_id == "1"
            assert (stream.decoder.reconnection_time or 0) > 3000

    async def test_a_client_that_does_not_read_is_let_go(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("django_sse.streaming.hub._TICK_SECONDS", 0.01)
        settings.DJANGO_SSE = {"STORE": "memory", "SEND_TIMEOUT": 0.1}
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await never.wait()
            raise AssertionError

        bodies = [{"type": "http.request"}]

        async def send(message: Any) -> None:
            if message.get("body", b"").startswith(b"data"):
                await never.wait()

        scope = get("/endless/").scope  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            await get_asgi_application()(scope, receive, send)
        await until(lambda: Generated.closed)

    async def test_limits_count_it(self, settings: Settings) -> None:
        settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS_PER_USER": 1}
        async with handed_off("/of/7/") as first:
            await first.next_events()
            refused = await Of.as_view()(get(headers={"Accept": "*/*"}), user="7")
            assert refused.status_code == 503
            async with handed_off("/of/8/") as other:
                await other.next_events()
        async with handed_off("/of/7/") as again:
            await again.next_events()

    async def test_a_user_whose_slow_calls_outlive_their_streams_keeps_no_other_waiting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("django_sse.concurrency.threads._SLOW_SECONDS", 0.01)
        Calling.begun, Calling.goes_on = threading.Semaphore(0), threading.Event()
        try:
            async with AsyncExitStack() as stack:
                for _ in range(40):
                    stream = await stack.enter_async_context(handed_off("/calling/slow/"))
                    await stream.next_events()
                # Until as many of them run as may.
                while await asyncio.to_thread(Calling.begun.acquire, timeout=1):
                    pass
            async with handed_off("/calling/other/") as other, asyncio.timeout(10):
                assert [event.data for event in await other.rest()][:2] == ["begun", "called"]
        finally:
            Calling.goes_on.set()

    async def test_a_store_that_is_away_lets_its_owner_come_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*args: Any) -> Any:
            raise OSError("away")

        monkeypatch.setattr(get_store(), "astates", fail)
        refused = await Of.as_view()(get(headers={"Accept": "*/*"}), user="7")
        assert refused.status_code == 503
        # Without an owner there is nothing to ask the store.
        async with open_stream(Forever.as_view()) as stream:
            assert (await stream.next_event()).data == "begun"

    async def test_a_generator_that_is_cancelled_by_something_else_ends_its_stream(self) -> None:
        class Cancelled(EventGeneratorView):
            async def events(self) -> AsyncIterator[Event]:
                yield Event("begun", id="1")
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.Event().wait()

        async with open_stream(Cancelled.as_view()) as stream:
            events = await stream.rest()
            assert [event.data for event in events] == ["begun"]
            assert stream.last_event_id == "1"

    async def test_an_owner_whose_end_is_looked_up_gets_nothing_more_nor_counts_it_as_received(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on, answers = asyncio.Event(), asyncio.Event()
        store = get_store()
        states = store.astates

        class Gated(Of):
            async def events(self) -> AsyncIterator[Event]:
                Generated.begun += 1
                try:
                    yield Event("before", id="1")
                    await goes_on.wait()
                    yield Event("after", id="2")
                finally:
                    Generated.closed += 1

        async def late(*args: Any) -> Any:
            await answers.wait()
            return await states(*args)

        async with open_stream(Gated.as_view(), user="7") as stream:
            assert (await stream.next_event()).data == "before"
            monkeypatch.setattr(store, "astates", late)
            await acancel(user="7")
            goes_on.set()
            for _ in range(20):
                await asyncio.sleep(0)
            answers.set()
            assert [event.event for event in await stream.rest()] == ["close"]
            assert stream.last_event_id == f"1{LEFT_MARK}"

    @pytest.mark.parametrize("id", [TERMINAL_MARK, f"1{LEFT_MARK}"])
    async def test_an_id_that_would_stop_its_client_is_refused(self, id: str) -> None:
        class Marked(EventGeneratorView):
            async def events(self) -> AsyncIterator[Event]:
                yield Event("marked", id=id)

        async with open_stream(Marked.as_view()) as stream:
            assert reasons(await stream.rest()) == ["failed"]

    @pytest.mark.parametrize("end", ["%0A", "%0D", "%0D%0A"])
    async def test_an_id_that_its_client_made_up_adds_no_lines_to_its_end(self, end: str) -> None:
        class Silent(Of):
            async def events(self) -> AsyncIterator[Event]:
                yield Event("begun")
                await asyncio.Event().wait()

        made_up = f"/?lastEventId=1{end}{end}data:forged{end}{end}"
        async with open_stream(Silent.as_view(), made_up, user="7") as stream:
            assert (await stream.next_event()).data == "begun"
            await acancel(user="7")
            assert [event.event for event in await stream.rest()] == ["close"]

    async def test_what_a_generator_awaits_to_close_itself_is_not_cancelled(self) -> None:
        await _lose_client("/saving/", after=3)
        await until(lambda: Generated.closed)


@pytest.mark.usefixtures("memory_store")
class TestRequest:
    @pytest.mark.parametrize("language", ["de", "fr"])
    async def test_it_runs_in_the_language_of_its_request(
        self, settings: Settings, language: str
    ) -> None:
        settings.MIDDLEWARE = ["django.middleware.locale.LocaleMiddleware"]
        headers = [(b"accept-language", language.encode())]
        async with handed_off("/localized/", headers=headers) as stream:
            assert (await stream.next_events())[0].data == language

    async def test_it_reads_what_was_posted(self) -> None:
        assert await _post(b"the body", "text/plain") == "the body"
        assert await _post(b"text=of+a+form", "application/x-www-form-urlencoded") == "of a form"

    async def test_it_reads_a_form_with_parts(self) -> None:
        assert await _post(_form('name="text"', "of a part"), _FORM) == "of a part"

    async def test_it_takes_files_only_in_its_request(self) -> None:
        form = _form('name="file"; filename="a.txt"', "a file")
        await _post(form, _FORM, status=415)
        assert await _post(form, _FORM, "/posted/files/") == "a file"

    @override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10)
    async def test_it_takes_a_body_that_is_too_large_to_be_kept_only_in_its_request(self) -> None:
        await _post(b"x" * 1000, "text/plain", status=413)
        assert await _post(b"x" * 1000, "text/plain", "/read/") == "1000"

    async def test_a_body_is_not_read_for_a_stream_that_is_refused(
        self, settings: Settings
    ) -> None:
        settings.DJANGO_SSE = {"STORE": "memory", "MAX_STREAMS": 1}
        async with handed_off("/forever/") as stream:
            await stream.next_events()
            request = Request(
                get_asgi_application(),
                "/posted/",
                method="POST",
                headers=[(b"content-type", b"multipart/form-data"), (b"accept", b"*/*")],
            )
            # It has no boundary, which would be a 400.
            await request.start()
            assert request.status == 503
            await request.rest()

    @pytest.mark.parametrize(
        ("options", "stays"),
        [({}, False), ({"NAMESPACE": f"{__name__}.current_of_thread"}, True), (OF_THREAD, False)],
    )
    async def test_where_the_tenant_is_known_to_the_request_alone_it_stays_there(
        self,
        settings: Settings,
        caplog: pytest.LogCaptureFixture,
        options: dict[str, Any],
        stays: bool,
    ) -> None:
        settings.DJANGO_SSE = {"STORE": "memory", **options}
        async with streaming(get_asgi_application(), "/forever/") as stream:
            await stream.next_events()
            assert ("NAMESPACE_CONTEXT" in caplog.text) is stays

    @pytest.mark.django_db(transaction=True)
    async def test_one_that_stays_below_a_sync_middleware_may_block(
        self, settings: Settings
    ) -> None:
        settings.MIDDLEWARE = [f"{__name__}.sync_middleware"]
        async with streaming(get_asgi_application(), "/staying/") as stream:
            assert [event.data for event in await stream.rest()][:2] == ["0", "0"]

    async def test_one_whose_tenant_was_left_does_not_begin_in_another_one(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.MIDDLEWARE = [f"{__name__}.InTenant"]
        settings.DJANGO_SSE = {"STORE": "memory", "NAMESPACE": OF_THREAD["NAMESPACE"]}
        query = b"tenant=north"
        async with streaming(get_asgi_application(), "/forever/", query_string=query) as stream:
            assert reasons(await stream.rest()) == []
        assert Generated.begun == 0
        assert "NAMESPACE_CONTEXT" in caplog.text

    async def test_an_attribute_of_a_view_is_its_own(self) -> None:
        class Counting(EventGeneratorView):
            retry = 700

            async def events(self) -> AsyncIterator[int]:
                for number in range(self.kwargs["steps"]):
                    yield number

        async with open_stream(Counting.as_view(), steps=2) as stream:
            assert stream.reconnection_time == 700
            assert [event.data for event in await stream.rest()][:2] == ["0", "1"]

    def test_a_view_without_events_is_refused(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="nothing to stream: write `async def ev"):
            EventGeneratorView.as_view()

        class Wrong(EventGeneratorView):
            def events(self) -> Iterator[int]:  # type: ignore[override]
                yield 1

        with pytest.raises(ImproperlyConfigured, match="has to be `async def events"):
            Wrong.as_view()

    async def test_head_runs_nothing(self) -> None:
        answer = await Forever.as_view()(get(method="HEAD"))
        assert [chunk async for chunk in answer] == []
        assert Generated.begun == 0

    async def test_a_client_that_was_ended_for_good_is_told_so_again(self) -> None:
        answer = await respond(Forever.as_view(), headers={"Last-Event-ID": TERMINAL_MARK})
        assert answer.status_code == 204


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("everything_ends")
class TestDatabase:
    async def test_each_call_has_a_thread_of_its_own_and_two_run_at_once(
        self, settings: Settings
    ) -> None:
        settings.MIDDLEWARE = []
        before = set(threading.enumerate())
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(handed_off("/users/")) for _ in range(10)]
            for stream in streams:
                events = await stream.rest()
                assert [event.data for event in events[:-1]] == ["0", "0", "0"]
                assert reasons(events) == ["complete"]
        assert len(Generated.threads) == 30
        assert not Generated.threads & before
        assert Generated.most_running <= 2
        await until(lambda: not any(thread.is_alive() for thread in Generated.threads))

    async def test_calls_that_hang_do_not_stop_those_of_others(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("django_sse.concurrency.threads._SLOW_SECONDS", 0.05)
        settings.MIDDLEWARE = []
        Hanging.begun.clear()
        Hanging.ends.clear()
        async with AsyncExitStack() as stack:
            hanging = [await stack.enter_async_context(handed_off("/hanging/")) for _ in range(3)]
            try:
                await asyncio.to_thread(Hanging.begun.wait, 10)
                async with handed_off("/users/") as stream:
                    assert reasons(await stream.rest()) == ["complete"]
            finally:
                Hanging.ends.set()
            for each in hanging:
                assert reasons(await each.rest()) == ["complete"]

    async def test_in_its_request_it_uses_the_connection_of_the_request(self) -> None:
        async with open_stream(users) as stream:
            await stream.rest()
        assert Generated.threads == {await sync_to_async(threading.current_thread)()}

    @pytest.mark.parametrize("after", [1, 3])
    async def test_its_thread_ends_after_what_it_calls_to_close_itself(
        self, settings: Settings, after: int
    ) -> None:
        settings.MIDDLEWARE = []
        await _lose_client("/saving/", after)
        await until(lambda: Generated.closed)
        await until(lambda: not any(thread.is_alive() for thread in Generated.threads))


@pytest.mark.django_db(transaction=True, databases=["default", postgresql.ALIAS])
@pytest.mark.usefixtures("everything_ends")
async def test_nobody_finds_the_tenant_of_another_one(settings: Settings) -> None:
    """Neither in a database connection nor in a thread."""
    settings.MIDDLEWARE = [f"{__name__}.InTenant"]
    settings.DJANGO_SSE = OF_THREAD
    async with (
        handed_off("/of-tenant/", query_string=b"tenant=north") as north,
        handed_off("/of-tenant/", query_string=b"tenant=south") as south,
    ):
        for name, stream in (("north", north), ("south", south)):
            events = [event.data for event in await stream.rest()]
            assert events[:-1] == ["begun", *[f"nobody {name}"] * 20]


async def _lose_client(url: str, after: int) -> None:
    """Request a stream, and have the server notice with an event that the client has gone."""
    events = 0

    async def receive() -> dict[str, Any]:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal events
        events += message.get("body", b"").startswith(b"data")
        if events == after:
            raise OSError("The client has gone.")

    bodies = [{"type": "http.request"}]
    scope = get(url).scope  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        await get_asgi_application()(scope, receive, send)


_FORM = "multipart/form-data; boundary=x"


def _form(disposition: str, content: str) -> bytes:
    return (
        f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n--x--\r\n"
    ).encode()


async def _post(body: bytes, content_type: str, url: str = "/posted/", *, status: int = 200) -> str:
    """Return the first event of the stream that answers a POST, if it is not refused."""
    request = Request(
        get_asgi_application(),
        url,
        method="POST",
        headers=[
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ],
    )
    await request.communicator.send_input({"type": "http.request", "body": body})
    message = await request.communicator.receive_output(10)
    assert message["status"] == status
    events = await request.rest()
    return str(events[0].data) if status == 200 else ""
