"""The views of the test project: streams, what acts on them, and what the tests need to know."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.contrib import auth
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    QueryDict,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.middleware.csrf import get_token
from django.utils.translation import gettext
from django.views.decorators.csrf import csrf_exempt

import django_sse
from django_sse import Event, acancel
from django_sse.contrib.ai_sdk import ChatView, Reasoning, ToolCall
from django_sse.decorators import event_generator, event_stream, event_stream_headers
from django_sse.exceptions import AlreadyProducing, GroupCancelled
from django_sse.http.response import last_event_id
from django_sse.mixins import LoginRequiredMixin
from django_sse.presence import apresent
from django_sse.producing import start_producing
from django_sse.streaming import hub
from django_sse.views import EventProducerView, EventStreamView


class Group(EventStreamView):
    groups = ["{group}"]


class Groups(EventStreamView):
    async def get_groups(self) -> list[str]:
        return self.request.GET.getlist("group")


class Members(EventStreamView):
    """A group for users who are logged in."""

    groups = ["{group}"]

    async def authorize(self, groups: Sequence[str]) -> None:
        user = await self.request.auser()
        if not user.is_authenticated:
            raise PermissionDenied


class Room(EventStreamView):
    """A group that tells who is there. Whoever comes says who it is."""

    groups = ["{group}"]
    presence = True

    async def get_owner(self) -> str | None:
        return self.request.GET.get("user")


class Resumed(LoginRequiredMixin, EventStreamView):
    """A group for users who are logged in, who come back past Django."""

    groups = ["{group}"]
    resume_seconds = 600


class Unauthorized(EventStreamView):
    """A group for nobody, answered as one whose session is over."""

    groups = ["{group}"]

    async def authorize(self, groups: Sequence[str]) -> HttpResponse:
        return HttpResponse(status=401)


class Localized(EventStreamView):
    """Adds the name of a day, in the language of its client."""

    groups = ["{group}"]

    def filter_event(self, event: Event) -> Event:
        return Event(f"{event.text} {gettext('Monday')}")


@event_stream("{group}")
async def guarded(request: HttpRequest, group: str) -> None:
    """Let everybody in."""


@event_stream_headers
async def by_hand(request: HttpRequest) -> StreamingHttpResponse:
    """A stream of the project's own, without an end."""

    async def chunks() -> AsyncIterator[str]:
        while True:
            yield ":\n\n"
            await asyncio.sleep(0.1)

    return StreamingHttpResponse(chunks())


@event_generator
async def progress(request: HttpRequest) -> AsyncIterator[Event]:
    steps = int(request.GET.get("steps", 5))
    for step in range(1, steps + 1):
        await asyncio.sleep(float(request.GET.get("delay", 0.2)))
        yield Event({"step": step, "steps": steps}, event="progress")


@event_generator
async def counted(request: HttpRequest) -> AsyncIterator[Event]:
    """Count the users, now and every hour."""
    while True:
        yield Event(await User.objects.acount(), id="counted")
        await asyncio.sleep(3600)


async def ask(request: HttpRequest, group: str) -> HttpResponse:
    """Start an answer, which is in the group; 409 if there is or was one."""
    words, delay = int(request.GET.get("words", 100)), float(request.GET.get("delay", 0.01))
    return await begun(answer(group, words, delay), group)


async def begun(events: AsyncIterator[Any], group: str) -> HttpResponse:
    try:
        await start_producing(events, group=group)
    except (AlreadyProducing, GroupCancelled):
        return HttpResponse(status=409)
    return HttpResponse(status=202)


class Produced(EventProducerView):
    """An answer that its first client starts, and any may stop."""

    groups = ["{group}"]
    stoppable = True

    def events(self) -> AsyncIterator[int]:
        words, delay = int(self.request.GET.get("words", 100)), self.request.GET.get("delay", 0.01)
        return answer(self.kwargs["group"], words, float(delay))


class Paid(Produced):
    """An answer that is not worth its price if nobody reads it."""

    stop_when_unread = 1.0


class Job(EventProducerView):
    """A job that notes how far it is, so that another process can go on with it."""

    groups = ("{group}",)
    restartable = True

    async def events(self) -> AsyncIterator[int]:
        runs = runs_of(Path(connection.settings_dict["NAME"]).parent, self.kwargs["group"])
        progress = runs.with_suffix(".progress")
        note(runs, "begun")
        try:
            done = int(progress.read_text()) if progress.exists() else 0
            for number in range(done, int(self.request.GET["words"])):
                yield number
                progress.write_text(str(number + 1))
                await asyncio.sleep(0.01)
        finally:
            note(runs, "closed")


class Chat(ChatView):
    """Answers what it is told to: `count 10`, `hold 10` until a file says that it is over, `fail`,
    or `add 1 2` by a tool of the page."""

    async def answer(self) -> AsyncIterator[Any]:
        runs = runs_of(Path(connection.settings_dict["NAME"]).parent, self.chat_id)
        note(runs, "begun")
        try:
            last = self.messages[-1]
            question = [
                part["text"] for part in self.messages[0]["parts"] if part["type"] == "text"
            ]
            what, *numbers = question[0].split()
            if last["role"] == "assistant":
                yield f"It is {last['parts'][-1]['output']}."
            elif what == "add":
                a, b = map(int, numbers)
                yield Reasoning("The page can add.")
                yield ToolCall("call", "add", {"a": a, "b": b})
            elif what == "fail":
                yield "To begin with,"
                raise ZeroDivisionError
            else:
                for number in range(int(numbers[0])):
                    yield f"{number} "
                    await asyncio.sleep(0.01)
                while what == "hold" and not runs.with_suffix(".over").exists():
                    await asyncio.sleep(0.01)
        finally:
            note(runs, "closed")


async def stop(request: HttpRequest, group: str) -> HttpResponse:
    """Stop an answer, for a form: a page stays as it is if the answer to its form is 204."""
    await acancel(group, reason="stopped")
    return HttpResponse(status=204)


async def answer_page(request: HttpRequest, group: str) -> HttpResponse:
    """Return a page that shows an answer, and has a button to stop it, without a script."""
    return HttpResponse(
        f"""<!doctype html>
        <script type="module" src="/static/django_sse/event-stream.js"></script>
        <event-stream src="/produced/{group}/?words=1000" swap="beforeend"></event-stream>
        <form method="post" action="/stop/{group}/">
            <input type="hidden" name="csrfmiddlewaretoken" value="{get_token(request)}">
            <button>Stop</button>
        </form>"""
    )


async def answer(group: str, words: int, delay: float) -> AsyncIterator[int]:
    """Count, and note the begin and the end in a file beside the database."""
    runs = runs_of(Path(connection.settings_dict["NAME"]).parent, group)
    await sync_to_async(note)(runs, "begun")
    try:
        for number in range(words):
            yield number
            await asyncio.sleep(delay)
    finally:
        note(runs, "closed")


def runs_of(directory: Path, group: str) -> Path:
    """Return the file that notes when answers in a group begin and end."""
    return directory / f"{group}.runs"


def note(runs: Path, what: str) -> None:
    with runs.open("a") as file:
        file.write(f"{what}\n")


def login(request: HttpRequest) -> HttpResponse:
    """Log a user in: the response sets the session's cookie."""
    user, _ = User.objects.get_or_create(username=request.GET.get("user", "someone"))
    auth.login(request, user)
    return HttpResponse(status=204)


def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return HttpResponse(status=204)


def change_password(request: HttpRequest) -> HttpResponse:
    """Change the user's password as Django's view does, which keeps this session alone."""
    user = User.objects.get(username=request.user.get_username())
    user.set_password("another one")
    user.save()
    auth.update_session_auth_hash(request, user)
    return HttpResponse(status=204)


def deactivate(request: HttpRequest) -> HttpResponse:
    """Deactivate a user as a bulk update does, which sends no signal."""
    User.objects.filter(username=request.GET["user"]).update(is_active=False)
    return HttpResponse(status=204)


async def present(request: HttpRequest, group: str) -> HttpResponse:
    members = await apresent(group)
    return JsonResponse({member.user: member.streams for member in members})


async def open_streams(request: HttpRequest) -> HttpResponse:
    return JsonResponse(hub.open_streams(), safe=False)


def publish(request: HttpRequest, group: str) -> HttpResponse:
    django_sse.publish(group, request.GET["data"], event=request.GET.get("event"))
    return HttpResponse(status=204)


def cancel(request: HttpRequest, group: str) -> HttpResponse:
    django_sse.cancel(group, reason=request.GET.get("reason"))
    return HttpResponse(status=204)


def cancel_user(request: HttpRequest, **group: str) -> HttpResponse:
    """Cancel a user, in all groups or in one."""
    user = User.objects.get(username=request.GET["user"])
    django_sse.cancel(**group, user=user, reason=request.GET.get("reason"))
    return HttpResponse(status=204)


def reopen(request: HttpRequest, group: str) -> HttpResponse:
    django_sse.reopen(group)
    return HttpResponse(status=204)


async def event_sources(request: HttpRequest) -> HttpResponse:
    """Return a page that follows streams, for the tests in a browser."""
    return HttpResponse(Path(__file__).with_name("event_sources.html").read_text())


async def ends(request: HttpRequest) -> HttpResponse:
    """Return a stream that says when to come back, if that is asked for, and ends."""
    retry = request.GET.get("retry")
    return HttpResponse(f"retry: {retry}\n\n" if retry else ":\n\n", "text/event-stream")


async def says(request: HttpRequest) -> HttpResponse:
    """Return what is asked for: a text, another one to who comes back, with a status and a type."""
    text = request.GET.get("text", "")
    if last_event_id(request):
        text = request.GET.get("then", text)
    response = HttpResponse(
        text,
        request.GET.get("type", "text/event-stream"),
        status=int(request.GET.get("status", 200)),
    )
    if location := request.GET.get("location"):
        response["Content-Location"] = location
    return response


@csrf_exempt
async def echo(request: HttpRequest) -> HttpResponse:
    """Return what was sent as an event, and where it goes on, if that is asked for."""
    sent = {
        "method": request.method,
        "body": request.body.decode(),
        "cookies": sorted(request.COOKIES),
        "id": last_event_id(request),
        **{name: request.headers.get(name) for name in request.GET.getlist("header")},
    }
    response = HttpResponse(f"retry: 10\nid: 7\ndata: {json.dumps(sent)}\n\n", "text/event-stream")
    if location := request.GET.get("location"):
        response["Content-Location"] = location
    return response


@csrf_exempt
@event_stream_headers
async def posted_elsewhere(request: HttpRequest) -> HttpResponse:
    """Return the method as an event, to a page of any origin that is allowed."""
    response = HttpResponse(f"retry: 10\ndata: {request.method}\n\n", "text/event-stream")
    response["Content-Location"] = request.GET.get("location", request.path)
    return response


async def protected(request: HttpRequest) -> HttpResponse:
    """Answer what has a CSRF token."""
    return HttpResponse(f"data: {request.method}\n\n", "text/event-stream")


class Forgetful(Group):
    """Knows nothing of where its client was, as behind a redirect that drops the query."""

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        request.META.pop("HTTP_LAST_EVENT_ID", None)
        # Made of that once.
        vars(request).pop("headers", None)
        request.GET = QueryDict()
        return await super().get(request, *args, **kwargs)


class ForgetfulWithState(Forgetful):
    async def initial_events(self) -> AsyncGenerator[Event, None]:
        yield Event("the state of now")


async def slow_page(request: HttpRequest) -> HttpResponse:
    """Return a page that lets its visitor wait."""
    await asyncio.sleep(float(request.GET["seconds"]))
    return HttpResponse("<!doctype html><title>there</title>")


async def page_with_policy(request: HttpRequest) -> HttpResponse:
    """Return the page that follows streams, with a Content Security Policy."""
    response = await event_sources(request)
    response["Content-Security-Policy"] = request.GET["policy"]
    return response


@csrf_exempt
async def foreign(request: HttpRequest) -> HttpResponse:
    """Return HTML as an event, or redirect; whatever page asks may read it, with its cookies."""
    to = request.GET.get("to")
    id_line = f"id: {request.GET['id']}\n" if "id" in request.GET else ""
    response: HttpResponse = HttpResponse(f"{id_line}data: <b>foreign</b>\n\n", "text/event-stream")
    if to:
        response = HttpResponseRedirect(to)
    response["Access-Control-Allow-Origin"] = request.headers.get("Origin", "*")
    response["Access-Control-Allow-Credentials"] = "true"
    return response


async def group_send(request: HttpRequest, group: str) -> HttpResponse:
    """Send a plain Channels message to a group, as a project's code may."""
    await get_channel_layer().group_send(group, {"type": "sse.event", "data": request.GET["data"]})
    return HttpResponse(status=204)


async def long_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("long enough to be compressed " * 100)


@event_stream_headers
async def unavailable(request: HttpRequest) -> HttpResponse:
    """A stream of the project's own, at a bad time."""
    return HttpResponse("down for maintenance", status=503)
