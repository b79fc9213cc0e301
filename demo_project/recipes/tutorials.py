"""The classic tutorials of server-sent events, with this library. Their pages show this source."""

import asyncio
import json
from collections.abc import AsyncIterator

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from demo_project.recipes.actions import action
from django_sse import Event, cancel, publish, reopen
from django_sse.decorators import event_generator, event_stream_headers
from django_sse.views import EventStreamView


@event_generator
async def digits(request: HttpRequest) -> AsyncIterator[Event]:
    for digit in (1, 2, 3):
        yield Event(digit)
        await asyncio.sleep(1)
    yield Event("bye-bye", event="bye")


@event_generator
async def server_time(request: HttpRequest) -> AsyncIterator[Event]:
    yield Event(retry=10_000)
    for _ in range(10):
        yield Event(f"The server time is {timezone.now():%H:%M:%S} UTC.")
        await asyncio.sleep(1)
    yield Event("Transmission ends.")


@event_generator
async def download(request: HttpRequest) -> AsyncIterator[dict[str, object]]:
    for percent in (0, 50, 100):
        yield {"type": "progress", "percent": percent}
        await asyncio.sleep(0.5)
    yield {"type": "close"}
    # Let the client close first.
    await asyncio.sleep(2)


@event_stream_headers
async def maintenance(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=503)


class Room(EventStreamView):
    groups = ["recipes-room"]


@action
def join(request: HttpRequest) -> None:
    publish("recipes-room", {"name": request.POST.get("name")}, event="join")


@action
def leave(request: HttpRequest) -> None:
    publish("recipes-room", {"name": request.POST.get("name")}, event="leave")


@event_generator
async def lines(request: HttpRequest) -> AsyncIterator[str]:
    yield "first line\nsecond line"
    yield json.dumps({"msg": "hello world", "id": 12345}, indent=2)
    yield "<ul>\n  <li>indented</li>\n\n  <li>after an empty line</li>\n</ul>\n"


async def enter(request: HttpRequest) -> HttpResponse:
    # A page of another site sends only a cookie that has all of these attributes.
    cookie = "guest=Ada; Path=/; HttpOnly; Secure; SameSite=None; Partitioned"
    return HttpResponse(status=204, headers={"Set-Cookie": cookie})


@event_generator
async def who(request: HttpRequest) -> AsyncIterator[dict[str, object]]:
    yield {
        "you read": request.get_host(),
        "from a page of": request.headers.get("Origin"),
        "as": request.COOKIES.get("guest"),
    }


@event_stream_headers
async def numbers(request: HttpRequest) -> HttpResponseBase:
    seen = request.headers.get("Last-Event-ID", "")
    done = int(seen) if seen in set("123456789") else 0

    async def three_more() -> AsyncIterator[bytes]:
        for number in range(done + 1, done + 4):
            yield Event(number, id=str(number), retry=500).encode()
            await asyncio.sleep(0.3)
        # As if the connection broke here: nothing says that this is the end.

    return StreamingHttpResponse(three_more()) if done < 9 else HttpResponse(status=204)


class Ticker(EventStreamView):
    groups = ["recipes-ticker"]


@action
def tick(request: HttpRequest) -> None:
    publish("recipes-ticker", {"text": request.POST.get("text")})


class Sale(EventStreamView):
    groups = ["recipes-sale"]


@action
def sell_out(request: HttpRequest) -> None:
    cancel("recipes-sale", reason="sold out")


@action
def restock(request: HttpRequest) -> None:
    reopen("recipes-sale")


async def not_there(request: HttpRequest) -> HttpResponse:
    return HttpResponse("There is no such stream.", status=404)


async def no_stream(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"stream": None})
