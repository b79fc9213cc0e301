"""One session: some clients and publishers at once, and what has to be true of all they see."""

import asyncio
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import parse_qsl

from channels.layers import get_channel_layer
from django.test import override_settings

from django_sse import (
    Event,
    EventStreamError,
    acancel,
    apublish,
    apublish_many,
    areopen,
)
from django_sse.conf import conf
from django_sse.doorbells.layer import doorbell_group
from django_sse.doorbells.socket_directory import socket_directory
from django_sse.event import NO_DATA, encode_published
from django_sse.groups.position import LOST, group_hash, parse_position
from django_sse.http.hand_off import Application
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore
from django_sse.stores.postgresql_notify import _NotificationReader
from django_sse.stores.redis.keys import Keys
from django_sse.stores.redis.notifications import _Connection
from django_sse.streaming.hub import current_hub, open_streams
from tests.fuzz import inputs, views
from tests.fuzz.choices import Choices
from tests.fuzz.client import Client, Fields, Plan
from tests.test_event import shown

SECONDS: Final = 10.0
"""How long anything may take that has to happen."""

_STEPS: Final = 40
_STEPS_OF_A_CLIENT: Final = 8


class SharedMemoryStore(MemoryStore):
    """The memory store as a hub sees one that other processes publish to."""

    crosses_processes = True
    address = str(os.getpid())


_STORES: Final = ["memory", "tests.fuzz.session.SharedMemoryStore"]
_ALLOWED_ORIGINS: Final = [[], [inputs.ALLOWED_ORIGIN.decode()], ["*"]]
_LAYERS: Final = ["channels.layers.InMemoryChannelLayer", "tests.layers.OwnInMemoryLayer"]


class Session:
    """Runs what some bytes choose.

    Args:
        application: The ASGI application.
        chosen: The bytes.
        tally: Counts what was tried.
    """

    def __init__(self, application: Application, chosen: bytes, tally: Counter[str]) -> None:
        self._application = application
        self._choices = Choices(chosen)
        self._tally = tally
        self._clients: list[Client] = []
        self._published: dict[tuple[str, int], Fields] = {}
        self._messages: dict[str, set[Fields]] = {group: set() for group in inputs.GROUPS}
        self._ids: list[str] = []

    async def run(self) -> None:
        """Fails with an AssertionError where anything is not as it has to be."""
        steps = [
            *([self._request] * 8),
            *([self._publish] * 5),
            *[self._publish_oddly, self._send_message, self._forge, self._end_group, self._parse],
            *[self._leave, self._wait],
        ]
        layer = {"default": {"BACKEND": self._choices.pick(_LAYERS)}}
        settings = {
            "STORE": self._choices.pick(_STORES),
            "HISTORY_SIZE": 20,
            "MAX_EVENT_BYTES": 4096,
            "MAX_GROUPS": 5,
            "BACKLOG_BYTES": 64 * 1024,
            "RETRY": 100,
            "ALLOWED_ORIGINS": self._choices.pick(_ALLOWED_ORIGINS),
        }
        with override_settings(CHANNEL_LAYERS=layer, DJANGO_SSE=settings):
            try:
                for _ in range(_STEPS):
                    if not self._choices.left:
                        break
                    await self._choices.pick(steps)()
                await self._publish_last()
            finally:
                await self._let_all_go()
            for client in self._clients:
                self._judge(client)

    # What is done

    async def _request(self) -> None:
        choices = self._choices
        path = inputs.path(choices)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": choices.pick(["1.1", "1.1", "1.0", "2"]),
            "method": inputs.method(choices),
            "scheme": choices.pick(["http", "http", "https"]),
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": inputs.query(choices, self._ids),
            "headers": inputs.headers(choices, self._ids),
            "client": choices.pick([("127.0.0.1", 0), None]),
            "server": ("127.0.0.1", 80),
        }
        does = choices.pick(["stay", "stay", "stay", "leave", "leave", "stall", "break", "cancel"])
        plan = Plan(does, choices.number(_STEPS_OF_A_CLIENT))  # type: ignore[arg-type]
        body = choices.pick([[b""], [b""], [b""], [b"x" * 9, b"\0" * 9], [b"a=1&data=x"]])
        self._send_request(scope, list(body), plan)

    def _open(self, path: str) -> Client:
        """Ask for a stream as an EventSource does that stays."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"testserver"), (b"accept", b"text/event-stream")],
        }
        return self._send_request(scope, [b""], Plan())

    def _send_request(self, scope: dict[str, Any], body: list[bytes], plan: Plan) -> Client:
        states = get_store().states(inputs.GROUPS)
        # Who has lost events of a cancelled group is shown its close.
        heads = {group: state.head - state.cancelled for group, state in states.items()}
        client = Client(self._application, scope, body, plan, heads)
        self._clients.append(client)
        self._tally["requests"] += 1
        return client

    async def _publish(self) -> None:
        groups = [self._choices.pick(inputs.GROUPS) for _ in range(2)]
        events = []
        for _ in range(self._choices.pick([1, 1, 3, 9])):
            group, fields = self._choices.pick(groups), inputs.fields(self._choices)
            self._tally["events"] += 1
            with suppress(EventStreamError):
                event = Event(**fields)
                encode_published(event, conf().MAX_EVENT_BYTES)
                events.append((group, event))
        with suppress(EventStreamError):
            self._note(events, await apublish_many(events))

    async def _publish_oddly(self) -> None:
        group = self._choices.pick([*inputs.GROUPS, *inputs.NO_GROUPS])
        fields = inputs.fields(self._choices)
        self._tally["events"] += 1
        with suppress(EventStreamError):
            if fields.keys() <= {"data", "event"} and fields["data"] is not NO_DATA:
                event = Event(**fields)
                published = await apublish(group, fields["data"], event=fields.get("event"))
            else:
                event = Event(**fields)
                published = await apublish(group, event)
            self._note([(group, event)], [published])

    async def _send_message(self) -> None:
        group = self._choices.pick(inputs.GROUPS)
        message = inputs.message(self._choices)
        self._tally["messages"] += 1
        fields = {key: value for key, value in message.items() if key != "type"}
        if message.get("type") == "card.moved":
            self._messages[group].add(as_shown(Event(fields, event="moved")))
        elif message.get("type") == "sse.event":
            with suppress(EventStreamError, TypeError):
                event = Event(**fields)
                encode_published(event, conf().MAX_EVENT_BYTES)
                self._messages[group].add(as_shown(event))
        await get_channel_layer().group_send(group, message)

    async def _forge(self) -> None:
        group = self._choices.pick(inputs.GROUPS)
        head = get_store().states([group])[group].head
        if group in inputs.PUBLIC:
            # Somebody has to be there who might believe it.
            await _until(self._open(f"/one/{group}/"), b"id: ", "a position")
        self._tally["forged doorbells"] += 1
        self._tally["forged before a stream"] += bool(open_streams())
        if self._choices.one_in(2):
            message = inputs.doorbell(self._choices, head)
            await get_channel_layer().group_send(doorbell_group(group), message)
            return
        if self._choices.one_in(2):
            self._tally["forged messages of Redis"] += 1
            publish_by_redis(group, inputs.published(self._choices, head))
            return
        datagram = inputs.datagram(self._choices, head)
        if self._choices.one_in(2):
            self._tally["forged notifications"] += 1
            notify(datagram)
            return
        directory = socket_directory(get_store()).directory
        if get_store().crosses_processes and directory.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                for path in directory.iterdir():
                    with suppress(BlockingIOError):
                        sender.sendto(datagram, str(path))
                        self._tally["forged datagrams"] += 1

    async def _end_group(self) -> None:
        group = self._choices.pick([*inputs.GROUPS, *inputs.NO_GROUPS])
        with suppress(EventStreamError):
            if self._choices.one_in(2):
                await acancel(group, reason=inputs.text(self._choices))
            else:
                await areopen(group)

    async def _parse(self) -> None:
        for _ in range(10):
            sent = inputs.last_event_id(self._choices, self._ids).decode("utf-8", "replace")
            position = parse_position(sent, inputs.GROUPS)
            assert position.keys() <= set(inputs.GROUPS)
            assert all(LOST <= number < 2**63 for number in position.values())
            self._tally["positions"] += 1

    async def _leave(self) -> None:
        if self._clients:
            self._choices.pick(self._clients).leave()

    async def _wait(self) -> None:
        for _ in range(self._choices.number(50)):
            await asyncio.sleep(0)

    # How it ends

    async def _publish_last(self) -> None:
        """Publish to each group once more, and wait until every client that stayed has got it."""
        for client in self._clients:
            client.resume()
        staying = [client for client in self._clients if client.plan.does in ("stay", "stall")]
        for client in staying:
            await _until(client, b"id: ", "a position")
        for group, state in get_store().states(inputs.GROUPS).items():
            if not state.cancelled:
                event = Event(f"last of {group}")
                self._note([(group, event)], [await apublish(group, event)])
                for client in staying:
                    if group in allowed_groups(client.scope):
                        await _until(client, event.encode(), event.text)

    async def _let_all_go(self) -> None:
        for client in self._clients:
            client.leave()
        tasks = [client.task for client in self._clients]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=SECONDS)
            assert not left, f"{len(left)} requests did not end"
        async with asyncio.timeout(SECONDS):
            while open_streams() or asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.sleep(0)

    def _note(self, events: Iterable[tuple[str, Event]], published: Sequence[Any]) -> None:
        for (group, event), new in zip(events, published, strict=True):
            assert new.id
            self._published[group, parse_position(new.id, [group])[group]] = as_shown(event)
            self._ids.append(new.id)

    # What has to be true

    def _judge(self, client: Client) -> None:
        try:
            self._judge_task(client)
            assert client.status < 500, f"status {client.status}"
            if is_of_a_foreign_page(client.scope):
                assert not client.is_stream, "a stream for a foreign page"
            self._tally["streams"] += client.is_stream
            if client.is_stream and not client.scope["path"].startswith(("/own/", "/generator/")):
                self._judge_stream(client)
            elif client.is_stream:
                list(client.blocks())
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{client.plan}\n{shortened(client.scope)}\n{bytes(client.body[-2000:])!r}"
            ) from error

    def _judge_task(self, client: Client) -> None:
        if client.task.cancelled():
            assert client.plan.does == "cancel", "its task was cancelled"
            return
        error = client.task.exception()
        # What a server raises for a client that has gone is its own affair.
        if error and not (isinstance(error, OSError) and client.plan.does == "break"):
            raise AssertionError(f"the application raised {error!r}") from error

    def _judge_stream(self, client: Client) -> None:
        groups = allowed_groups(client.scope)
        assert groups, "a stream of what is not allowed"
        marks = {group_hash(group) for group in groups}
        begin: dict[str, int] = {}
        before: dict[str, int] = {}
        seen: dict[str, list[int]] = {group: [] for group in groups}
        blocks = list(client.blocks())
        for last_id, fields in blocks:
            if last_id is None:
                assert self._may_come_without_id(fields, client, groups), f"{fields} without an id"
                continue
            *entries, _ = last_id.split("~")
            position = parse_position(last_id, groups)
            assert {entry[:11] for entry in entries} <= marks, f"the position {last_id}"
            assert len(position) == len(entries) == len(groups), f"the position {last_id}"
            if fields.event == "close":
                assert last_id == blocks[-1][0], "something after the close"
            elif fields != Fields():
                group = self._group_of(client, fields, before, position)
                seen[group].append(position[group])
            begin = begin or position
            before = position
        if begin and not self._has_an_id_of_ours(client):
            self._judge_begin(client, begin)
        if client.plan.does in ("stay", "stall") and begin:
            self._judge_completeness(client, begin, seen)

    def _has_an_id_of_ours(self, client: Client) -> bool:
        headers = [value for name, value in client.scope["headers"] if name == b"last-event-id"]
        query = parse_qsl(client.scope["query_string"].decode("utf-8", "replace"))
        sent = {*headers, *(value.encode() for _, value in query)}
        return any(known.encode() in sent for known in self._ids)

    def _judge_begin(self, client: Client, begin: dict[str, int]) -> None:
        """Fail if a stream that brings no id of ours begins with what was before it."""
        if client.scope["path"].startswith("/history/"):
            return
        for group, number in begin.items():
            assert number >= client.heads.get(group, 0), f"{group} from {number}, by an id made up"

    def _group_of(
        self, client: Client, fields: Fields, before: dict[str, int], position: dict[str, int]
    ) -> str:
        """Return the group that an event was published to, between two positions."""
        for group, number in position.items():
            sent = self._published.get((group, number))
            is_new = before and number > before[group]
            if is_new and sent is not None and as_filtered(sent, client.scope) == fields:
                return group
        raise AssertionError(f"{fields} was not published at {position}, or came twice")

    def _judge_completeness(
        self, client: Client, begin: dict[str, int], seen: dict[str, list[int]]
    ) -> None:
        for group, numbers in seen.items():
            # A stream that was ended has got everything up to there.
            last = numbers[-1] if numbers else begin[group]
            expected = [
                number
                for (of, number), fields in self._published.items()
                if of == group
                and begin[group] < number <= last
                and as_filtered(fields, client.scope)
            ]
            assert numbers == expected, f"{group}: {numbers} came, and not {expected}"

    def _may_come_without_id(self, fields: Fields, client: Client, groups: Sequence[str]) -> bool:
        # The first bytes or the end, and heartbeats.
        if fields == Fields(retry=fields.retry) or fields == Fields(comments=("",)):
            return True
        if fields == Fields(event="reset", data="{}"):
            return True
        if client.scope["path"].startswith("/state/") and fields == as_shown(views.STATE):
            return True
        return any(
            as_filtered(sent, client.scope) == fields
            for group in groups
            for sent in self._messages[group]
        )


def notify(payload: bytes) -> None:
    """Have a hub's listener hear a notification of PostgreSQL, which takes any bytes."""
    notifications = iter([SimpleNamespace(extra=payload)])
    reader, writer = socket.socketpair()
    with reader, writer:
        connection = SimpleNamespace(
            fileno=reader.fileno,
            pgconn=SimpleNamespace(
                consume_input=lambda: None, notifies=lambda: next(notifications, None)
            ),
        )
        ear = _NotificationReader(connection, current_hub().hear_soon)
        ear._read()
        assert not ear.lost.done(), "a notification has ended the listening"
        ear.close()


def publish_by_redis(group: str, message: bytes) -> None:
    """Have a hub's subscriber hear a message on the channel of a group in Redis."""
    ear = _Connection(None, ("SUBSCRIBE", "UNSUBSCRIBE"), current_hub().hear_soon)
    # What it raises would end the listening.
    ear._take_reply(b"message", Keys("sse").channel(group).encode(), message)


def is_of_a_foreign_page(scope: dict[str, Any]) -> bool:
    """Say whether a browser sends a request for a page that is certainly another origin's."""
    headers = scope["headers"]
    sites = [value for name, value in headers if name == b"sec-fetch-site"]
    origins = [value for name, value in headers if name == b"origin"]
    if origins and ("*" in conf().ALLOWED_ORIGINS or inputs.ALLOWED_ORIGIN in origins):
        return False
    if sites:
        return sites in ([b"cross-site"], [b"same-site"])
    return origins in ([b"https://evil.example"], [b"http://testserver.evil.example"], [b"null"])


async def _until(client: Client, part: bytes, what: str) -> None:
    try:
        async with asyncio.timeout(SECONDS):
            await client.until(part)
    except TimeoutError:
        path, body = client.scope["path"], bytes(client.body[-300:])
        raise AssertionError(f"{what} did not come to {path} after {body!r}") from None


def shortened(value: Any) -> str:
    """Return what a value is, without what repeats itself in it."""
    return re.sub(r"(.{1,20}?)\1{20,}", r"\1...", repr(value))


def allowed_groups(scope: dict[str, Any]) -> list[str]:
    """Return the groups that a request may stream, as read from its scope."""
    parts = scope["path"].split("/")
    if scope["path"] == "/some/":
        query = parse_qsl(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True)
        groups = list(dict.fromkeys(value for name, value in query if name == "group"))
    elif parts[1] == "pair" and len(parts) == 5:
        groups = [f"{parts[2]}-{parts[3]}"]
    else:
        groups = [parts[2]] if len(parts) == 4 else []
    if parts[1] == "stacked":
        query = parse_qsl(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True)
        if not {("pass", "a"), ("pass", "b")} <= set(query):
            return []
    return [group for group in groups if not group.startswith("secret")]


def as_shown(event: Event) -> Fields:
    """Return what a stream shows of an event, in other words than those of the package."""
    text = None
    if event.data is not NO_DATA:
        text = shown(event.text)
    comments = shown(event.comment).split("\n") if event.comment is not None else []
    name = shown(event.event) if event.event is not None else None
    return Fields(tuple(comments), event.retry, name, text)


def as_filtered(fields: Fields, scope: dict[str, Any]) -> Fields | None:
    """Return what a view's filter makes of an event."""
    if not scope["path"].startswith("/filtered/") or fields.data is None:
        return fields
    if fields.event == "change":
        return Fields(event="changed", data=fields.data)
    return None if fields.event == "hidden" else fields
