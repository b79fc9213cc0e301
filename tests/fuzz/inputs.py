"""What hostile clients and careless publishers make up."""

from datetime import date
from decimal import Decimal
from typing import Any, Final

from django_sse.event import NO_DATA, RESERVED_NAMES
from django_sse.groups.position import TERMINAL_MARK, group_hash
from tests.fuzz.choices import Choices

PUBLIC: Final = ["news", "News", "a", "a-b", "x" * 99]
SECRET: Final = ["secret", "secret-2"]
GROUPS: Final = [*PUBLIC, *SECRET]
ALLOWED_ORIGIN: Final = b"https://app.example"
NO_GROUPS: Final = ["", "ä", "x" * 100, "a b", "a/b", "a\n", "{group}", "%s", "news\0", ".."]

_PIECES: Final = [
    *("\r", "\n", "\r\n", "\n\n", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"),
    *("\ufeff", "\ud800", "\udc00", "\ud83d\ude00", "\U0001f600", "\uffff", "é", "\x7f", "\t"),
    *("data: x", "event: close", "id: 1", "id", "retry: 0", "retry", ":", " ", ": ", "  "),
    *("data: x\n\n", "\nid: 1\n", "\nevent: close\ndata: x\n\n", "<script>", "%0a", "a" * 300),
    *('{"reason":null}', "\\", '"', "~end", "hidden", "change"),
]
_NAMES: Final = ["hidden", "change", "message", "Close", " close", "event", "a:b", ":", "", "ä"]
_METHODS: Final = ["GET"] * 12 + ["HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "X"]
_HEADERS: Final = [
    *("accept", "origin", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"),
    *("cookie", "content-encoding", "accept-encoding", "content-length", "content-type", "host"),
    *("last-event-id", "range", "if-none-match", "if-modified-since", "connection", "upgrade"),
    *("transfer-encoding", "authorization", "referer", "x-csrftoken", "accept-language", "te"),
    *("sec-fetch-site", "sec-fetch-site", "sec-fetch-dest", "origin"),
    *("x-http-method-override", "expect", "sec-fetch-mode", "user-agent", "x-any"),
]
_VALUES: Final = [
    *(b"", b"*", b"*/*", b"null", b"-1", b"0", b"9" * 30, b"gzip, br;q=0, identity;q=0", b"close"),
    *(b"text/html", b"text/event-stream", b"https://evil.example", b"://", b"http://[", b"::1"),
    *(b"1.2.3.4, " * 40, b"sessionid=x; csrftoken=y", b"sessionid=" + b"e30:1:" * 9, b"=;=;;,"),
    *(b"multipart/form-data; boundary=", b"application/json; charset=\xff", b"keep-alive, upgrade"),
    *(b"same-origin", b"cross-site", b"same-site", b"none", b"http://testserver", ALLOWED_ORIGIN),
    *(
        b"http://testserver:80",
        b"//testserver",
        b"HTTP://TESTSERVER",
        b"http://testserver.evil.example",
    ),
    *(b"a" * 9000, b"\xff\xfe", b"\xc3", b"\x7f\x01", b"a, a", b"[::1]:99999", b"bytes=0-"),
]
_PATHS: Final = [
    *("/", "//", "/one", "/one//", "/one/../some/", "/\0", "/one/news/\n/", "/ü/", "/%2e%2e/"),
    *("/one/" + "x" * 3000 + "/", "/some", "//evil.example/one", "/one/news"),
]
_TYPES: Final = [
    "sse.event",
    "sse.doorbell",
    "get",
    "filter.event",
    "__init__",
    "as_view",
    "",
    None,
]
_ROUTES: Final = [
    *("one", "guarded", "history", "state", "filtered", "handled", "silent", "own"),
    *("stacked", "bounded"),
]


def text(choices: Choices) -> str:
    """Return some text that any encoder may stumble over."""
    parts = []
    for _ in range(choices.number(6)):
        kind = choices.number(8)
        if kind == 0:
            parts.append(chr(choices.number(0x110000)))
        elif kind == 1:
            parts.append(choices.bytes(choices.number(20)).decode("utf-8", "surrogateescape"))
        elif kind == 2:
            parts.append(choices.pick("\r\n\0 :"))
        else:
            parts.append(choices.pick(_PIECES))
    return "".join(parts)


def data(choices: Choices) -> Any:
    """Return the data of an event: text, JSON, or what is neither."""
    kind = choices.number(20)
    if kind == 0:
        return NO_DATA
    if kind == 1:
        return choices.pick(
            [None, True, 0, -1.5, 1e308, 2**70, 10**5000, float("nan"), date.min, Decimal("nan")]
        )
    if kind == 2:
        return [{text(choices): text(choices)}, text(choices), choices.number(2**16)]
    if kind == 3:
        return choices.pick(
            [b"bytes", object(), {1: {2, 3}}, {(): 1}, text, "x" * 5000, [[]] * 900]
        )
    return text(choices)


def fields(choices: Choices) -> dict[str, Any]:
    """Return the arguments of an event."""
    chosen: dict[str, Any] = {"data": data(choices)}
    if choices.one_in(3):
        chosen["event"] = choices.pick([*_NAMES, *_NAMES, *sorted(RESERVED_NAMES), None, 7])
        if choices.one_in(3):
            chosen["event"] = text(choices)
    if choices.one_in(8):
        chosen["comment"] = choices.pick([text(choices), text(choices), "", None, 7])
    if choices.one_in(10):
        chosen["retry"] = choices.pick(
            [0, 1, 3000, 2**31, 10**20, -1, True, None, "1", 1.5, 10**5000]
        )
    if choices.one_in(30):
        chosen["id"] = choices.pick([text(choices), "1", "", "~end"])
    return chosen


def message(choices: Choices) -> dict[Any, Any]:
    """Return a plain Channels message: for streams, for a handler, or of any shape."""
    kind = choices.number(5)
    if kind < 2:
        return {"type": "sse.event", **fields(choices)}
    if kind == 2:
        return {"type": "card.moved", "title": text(choices)}
    names = ["type", "data", "event", "id", "retry", "comment", "group", "self", "", "\ud800"]
    found: dict[Any, Any] = {
        choices.pick(names): choices.pick([text(choices), data(choices), None, 0, [], {}])
        for _ in range(choices.number(5))
    }
    if choices.one_in(2):
        found["type"] = choices.pick(_TYPES)
    return found


def doorbell(choices: Choices, head: int) -> dict[str, Any]:
    """Return a forged doorbell, given the head of a group."""
    numbers = [0, 1, -1, head, head - 1, head + 1, head + 2, head + 1000, 2**63, 2**70, -(2**70)]
    odd: list[Any] = [None, "1", 1.5, [], {}, True, b"1", float("nan")]
    found: dict[str, Any] = {
        "type": "sse.doorbell",
        "group": choices.pick([*GROUPS, *NO_GROUPS, None, 7, ["news"], {}]),
        "head": choices.pick([*numbers, *odd]),
        "cancelled": choices.pick([False, True, None, "x", 0, []]),
        "entries": choices.pick(
            [
                [],
                [[head + 1, "data: forged\n\n", False, ""]],
                [[head + 1, "id: forged\nevent: close\ndata: forged\n\n", True, ""]],
                [[choices.pick(numbers), "data: forged\n\n", False, ""]],
                [[choices.pick(numbers), "forged", True, ""], [choices.pick(odd), "", None, 7]],
                [[choices.pick(numbers), choices.pick(odd), False, choices.pick(odd)]],
                [[1, 2]],
                [None],
                "entries",
                None,
                7,
            ]
        ),
    }
    if choices.one_in(2):
        # In one piece, as if it were one of ours.
        found |= {"group": choices.pick(GROUPS), "head": head + 1, "cancelled": False}
        found["entries"] = [[head + 1, "data: forged\n\n", False, ""]]
    found["signature"] = choices.pick(["", "0" * 64, "é", None, 7, choices.bytes(32).hex()])
    for name in list(found):
        if name != "type" and choices.one_in(16):
            del found[name]
    return found


def datagram(choices: Choices, head: int) -> bytes:
    """Return a forged datagram, or notification, given the head of a group."""
    if choices.one_in(3):
        return choices.bytes(choices.number(2100))
    number = choices.pick([0, 1, -1, head, head + 1, head + 9, 10**30, 10**900])
    line = f"{choices.pick([*GROUPS, *NO_GROUPS])} {number} {choices.pick('01x -')}"
    return choices.pick([line, line * 2, f"{line}\n" * 20, f"{line}\r\n\n", f" {line}"]).encode()


def published(choices: Choices, head: int) -> bytes:
    """Return a forged message on a channel of Redis, given the head of a group."""
    signature = choices.pick([b"", b"0" * 40, choices.bytes(20).hex().encode()])
    if choices.one_in(2):
        return signature + b"\n" + datagram(choices, head)
    entry = choices.pick([b"%d 0 \ndata: forged\n\n", b"%d 1 x\nid: forged\n\n", b"%d\n\n"])
    hint = f"{choices.pick(GROUPS)} {head + 1} 0".encode()
    return signature + b"\n" + hint + b"\n\n" + entry % (head + 1)


def last_event_id(choices: Choices, known: list[str]) -> bytes:
    """Return what a client claims to be the last id that it has seen."""
    kind = choices.number(12)
    if kind < 4 and known:
        return choices.pick(known).encode()
    if kind > 9 and known:
        return _made_up(choices, choices.pick(known)).encode()
    number = choices.pick(["0", "1", "z" * 11, "z" * 12, "hocu80ojke", "A", "-1", "", "9" * 9000])
    forged = f"{group_hash(choices.pick(GROUPS))}.{number}"
    if kind < 7:
        return "~".join([forged, *(choices.pick([forged, *known]) for _ in range(2))]).encode()
    if kind == 7:
        return choices.pick([TERMINAL_MARK, f"{TERMINAL_MARK}~{forged}", forged * 700]).encode()
    if kind == 8:
        return _header_value(choices.bytes(choices.number(60)))
    return b"~" * choices.pick([1, 16 * 1024, 20_000]) + forged.encode()


def _made_up(choices: Choices, known: str) -> str:
    """Return what a member may make of an id that was another's, or his own of before."""
    entry, _, signature = known.rpartition("~")
    group, _, number = entry.partition(".")
    earlier = choices.pick(["0", "1", number[:-1], number[:-1] + "0", f"0{number}", ""])
    return choices.pick(
        [
            entry,
            f"{group}.{earlier}~{signature}",
            f"{group}.{earlier}~{entry}~{signature}",
            f"{entry}~{group}.{earlier}~{signature}",
            f"{group_hash(choices.pick(GROUPS))}.{number}~{signature}",
            f"{group}.{earlier}~{signature.swapcase()}",
        ]
    )


def path(choices: Choices) -> str:
    """Return the path of a request, as servers decode it."""
    kind = choices.number(16)
    if kind == 0:
        return choices.pick(_PATHS)
    if kind == 1:
        return "/" + text(choices).encode("utf-8", "replace").decode()
    if kind < 4:
        return f"/pair/{choices.pick([*GROUPS, *NO_GROUPS])}/{choices.pick(GROUPS)}/"
    if kind < 7:
        return "/some/"
    if kind == 7:
        return "/generator/"
    group = choices.pick([*PUBLIC, *PUBLIC, *GROUPS, *NO_GROUPS])
    return f"/{choices.pick(_ROUTES)}/{group}/"


def query(choices: Choices, known: list[str]) -> bytes:
    """Return the query of a request."""
    parts = [
        b"group=" + choices.pick([*GROUPS, *NO_GROUPS[:4]]).encode()
        for _ in range(choices.number(8))
    ]
    parts += [choices.pick([b"pass=a", b"pass=b", b"pass=c"]) for _ in range(choices.number(4))]
    if choices.one_in(4):
        name = choices.pick([b"lastEventId", b"last_event_id", b"LASTEVENTID", b"lastEventId[]"])
        parts.append(name + b"=" + last_event_id(choices, known))
    if choices.one_in(16):
        parts.append(choices.pick([b"&&==&%", b"%ff=%00", b"a=%u1234", b"x=1&" * 1200, b"group"]))
    if choices.one_in(32):
        parts.append(choices.bytes(choices.number(40)))
    return b"&".join(parts)


def headers(choices: Choices, known: list[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request, of which a server has checked the form alone."""
    found = [(b"host", choices.pick([b"testserver"] * 20 + [b"", b"a b", b"\xff", b"a" * 300]))]
    if choices.one_in(2):
        found.append((b"last-event-id", last_event_id(choices, known)))
    for _ in range(choices.pick([0, 0, 1, 2, 6, 40])):
        value = choices.pick(_VALUES)
        if choices.one_in(8):
            value = _header_value(choices.bytes(choices.number(30)))
        found.append((choices.pick(_HEADERS).encode(), value))
    return found


def _header_value(value: bytes) -> bytes:
    # What every server refuses: RFC 9110, 5.5.
    return value.translate(None, b"\r\n\0")


def method(choices: Choices) -> str:
    return choices.pick(_METHODS)
