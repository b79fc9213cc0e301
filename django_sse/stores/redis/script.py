"""Runs the script of the redis store on one server, and tells the errors of a server apart."""

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text()
# The name that EVALSHA uses for the script.
SHA: Final = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
# redis-py before 5.3 asks for a name here, and later versions warn of one.
_VERSION: Final = tuple(int(part) for part in redis.__version__.split(".")[:2])
_COMMAND_NAME: Final = () if _VERSION >= (5, 3) else ("EVALSHA",)

# The errors of a server that takes no commands, or takes none now: a replica that was the master
# before a failover, a server that is starting, one that is cut off from its replicas.
_WRONG_SERVER: Final = (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)
_WRONG_SERVER_CODES: Final = re.compile(
    r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|UNBLOCKED|NOREPLICAS|MISCONF)\b"
)
_CLUSTER_ERRORS: Final[dict[str, Callable[[str], ResponseError]]] = {
    "ASK": AskError,
    "CROSSSLOT": ClusterCrossSlotError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}

Call = tuple[Any, ...]
"""The arguments of EVALSHA after the script's name: how many keys, the keys, the others."""


def execute(client: redis.Redis, calls: Sequence[Call]) -> list[Any]:
    """Run calls in one round trip. Return the replies, of which some may be errors.

    Raises:
        redis.RedisError: The server was not reached, or the connection has failed.
    """
    # Not through a pipeline of redis-py, which takes longer than all else that publishing does.
    connection = connect(client)
    try:
        replies = _replies(connection, calls)
        if (done := _count_until_unknown(replies)) < len(calls):
            connection.send_command("SCRIPT LOAD", SCRIPT)
            connection.read_response()
            replies[done:] = _replies(connection, calls[done:])
    except BaseException:
        # A reply that was not read would be taken for another call's.
        connection.disconnect()
        raise
    finally:
        client.connection_pool.release(connection)
    return replies


async def aexecute(client: redis.asyncio.Redis, calls: Sequence[Call]) -> list[Any]:
    """Do what ``execute`` does, on the running loop."""
    async with client.pipeline(transaction=False) as pipe:
        replies: list[Any] = await _queue(pipe, calls).execute(raise_on_error=False)
        if (done := _count_until_unknown(replies)) < len(calls):
            await client.script_load(SCRIPT)
            replies[done:] = await _queue(pipe, calls[done:]).execute(raise_on_error=False)
    return replies


def connect(client: redis.Redis) -> Any:
    """Return a connection of the client's pool, to which the caller returns it."""
    return client.connection_pool.get_connection(*_COMMAND_NAME)


def send(connection: Any, commands: Iterable[Sequence[Any]]) -> None:
    """Send commands together."""
    connection.send_packed_command(connection.pack_commands(commands))


def receive(connection: Any, count: int) -> list[Any]:
    """Return the next replies of a connection. A server's error is a reply."""
    replies = []
    for _ in range(count):
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def is_of_wrong_server(reply: Any) -> bool:
    """Whether a reply is the error of a server that takes no commands now.

    Such an error drops no connection, although the address leads to another server after a
    failover. Nothing was done: a server refuses a script before it writes.
    """
    # Redis before 7 puts the reason somewhere in the text of a script's error.
    return isinstance(reply, _WRONG_SERVER) or (
        isinstance(reply, ResponseError) and _WRONG_SERVER_CODES.search(str(reply)) is not None
    )


def raise_first_error(replies: list[Any]) -> list[Any]:
    """Return replies of which none is an error.

    Raises:
        Exception: The first that is one.
    """
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def typed(reply: Any) -> Any:
    """Return a reply. An error of a cluster has its class, which older versions of redis-py give it
    on their own connections to a cluster alone."""
    if type(reply) is ResponseError:
        code, _, rest = str(reply).partition(" ")
        if kind := _CLUSTER_ERRORS.get(code):
            return kind(rest)
    return reply


def _replies(connection: Any, calls: Sequence[Call]) -> list[Any]:
    send(connection, [("EVALSHA", SHA, *call) for call in calls])
    return receive(connection, len(calls))


def _queue(pipe: Any, calls: Iterable[Call]) -> Any:
    for call in calls:
        pipe.evalsha(SHA, *call)
    return pipe


def _count_until_unknown(replies: Sequence[Any]) -> int:
    """Return how many calls came before the first one for which the server lacked the script.

    This call and all later ones are made again in the same order. Later calls that succeeded can
    run twice, since an append is always the first call.
    """
    for n, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            return n
    return len(replies)
