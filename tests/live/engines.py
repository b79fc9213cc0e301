"""What a project may run on: a store and a channel layer, with the services of their own."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests import postgresql, redis
from tests.live.servers import manage, unavailable
from tests.postgresql import PostgreSQLPair
from tests.redis import RedisCluster, RedisPair, RedisSentinels, RedisServer

_DURABLE_REDIS = {"appendonly": "yes", "appendfsync": "always"}
# Killed, it is back where it was a second or two ago.
_FORGETFUL_REDIS = {"save": "1 1"}


@dataclass
class Services:
    """What runs for an engine, and how the project's processes find it."""

    environment: dict[str, str]
    redis: RedisServer | RedisPair | None = None
    postgresql: PostgreSQLPair | None = None
    several_redis: RedisCluster | RedisSentinels | None = None
    end_sessions: Callable[[], None] | None = None
    """Ends every connection to PostgreSQL."""


@dataclass(frozen=True)
class Engine:
    """A store and a layer. A forgetful one may lose what it has acknowledged, and has to say so."""

    name: str
    postgresql: bool = False
    standby: bool = False
    redis: dict[str, str] | None = None
    redis_store: bool = False
    several_redis: Callable[..., AbstractContextManager[RedisCluster | RedisSentinels]] | None = (
        None
    )
    layer: str | None = None
    layer_options: dict[str, Any] = field(default_factory=dict)
    forgetful: bool = False

    @property
    def crosses_machines(self) -> bool:
        """Whether processes on several machines reach it: a pair of Redis is at a Unix socket."""
        return self.postgresql or self.several_redis is not None

    def lacks(self) -> str | None:
        """Return what has to be installed for it, if anything."""
        if self.postgresql and not postgresql.binaries():
            return "PostgreSQL"
        needs_redis = self.redis is not None or self.several_redis
        return "redis-server" if needs_redis and not redis.binary() else None

    @contextmanager
    def run(self) -> Iterator[Services]:
        """Run the services for the length of the block."""
        services = Services({})
        store: Any = "database"
        with ExitStack() as stack:
            if self.standby:
                directory = postgresql.binaries()
                assert directory
                synchronous = not self.forgetful
                pair = stack.enter_context(
                    postgresql.serve_pair(directory, synchronous=synchronous)
                )
                services.postgresql = pair
                services.end_sessions = lambda: _end_sessions(pair.primary.port)
                services.environment["LIVE_DATABASES"] = json.dumps({"default": pair.database})
                store = {"BACKEND": "database", "OPTIONS": {"durable": synchronous}}
            elif self.postgresql:
                directory = postgresql.binaries()
                assert directory
                port = stack.enter_context(postgresql.serve(directory))
                services.end_sessions = lambda: _end_sessions(port)
                services.environment["LIVE_DATABASES"] = json.dumps({"default": _database(port)})
            if self.redis is not None:
                # A store outlives its master.
                server: RedisServer | RedisPair = (
                    stack.enter_context(redis.serve_pair(**self.redis))
                    if self.redis_store
                    else stack.enter_context(redis.serve(**self.redis))
                )
                services.redis = server
                if self.layer:
                    config = {"hosts": [server.url], **self.layer_options}
                    services.environment["LIVE_CHANNEL_LAYERS"] = json.dumps(
                        {"default": {"BACKEND": self.layer, "CONFIG": config}}
                    )
                if self.redis_store:
                    options = {"url": server.url, "durable": not self.forgetful}
                    store = {"BACKEND": "redis", "OPTIONS": options}
            if self.several_redis:
                servers = stack.enter_context(self.several_redis())
                services.several_redis = servers
                store = {"BACKEND": "redis", "OPTIONS": {"url": servers.url}}
            services.environment["LIVE_DJANGO_SSE"] = json.dumps({"STORE": store, **_SETTINGS})
            yield services


@asynccontextmanager
async def running(name: str, directory: Path, **settings: Any) -> AsyncIterator[dict[str, str]]:
    """Run an engine's services for the length of the block, with the tables that it needs.

    Args:
        name: The name of the engine. If it is not installed, the test is skipped.
        directory: Where the project's processes have their files.
        settings: More keys of ``DJANGO_SSE``.

    Yields:
        The environment of the project's processes.
    """
    engine = ENGINES[name]
    if lacking := engine.lacks():
        unavailable(f"{lacking} is not installed")
    with engine.run() as services:
        of_engine = json.loads(services.environment["LIVE_DJANGO_SSE"])
        environment = {
            **services.environment,
            "LIVE_DJANGO_SSE": json.dumps({**of_engine, **settings}),
        }
        await manage(directory, "migrate", "--verbosity", "0", **environment)
        yield environment


RETRY = 0.2
"""Seconds that a client waits before it comes back; where it is sent away, at least 0.5."""

PRODUCER_TTL = 3
"""Seconds without a sign of life after which a producer is taken for dead."""

# Small, so that slow clients meet their bounds within minutes; nothing is ever trimmed.
_SETTINGS = {
    "HISTORY_SIZE": 10_000_000,
    "RETRY": round(RETRY * 1000),
    "HEARTBEAT": 2,
    "SEND_TIMEOUT": 2,
    "BACKLOG_BYTES": 32 * 1024,
    "PRODUCER_TTL": PRODUCER_TTL,
}

_LISTS = "channels_redis.core.RedisChannelLayer"
_PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"

ENGINES = {
    "sqlite": Engine("SQLite + in-memory layer"),
    "postgresql": Engine("PostgreSQL + NOTIFY", postgresql=True),
    "postgresql-failover": Engine(
        "PostgreSQL with an asynchronous standby + NOTIFY",
        postgresql=True,
        standby=True,
        forgetful=True,
    ),
    "postgresql-synchronous": Engine(
        "PostgreSQL with a synchronous standby + NOTIFY", postgresql=True, standby=True
    ),
    "postgresql-pubsub": Engine(
        "PostgreSQL + channels_redis pub/sub", postgresql=True, redis={}, layer=_PUBSUB
    ),
    "postgresql-lists": Engine(
        "PostgreSQL + channels_redis lists, capacity 1",
        postgresql=True,
        redis={},
        layer=_LISTS,
        # Starved: a second message that waits is dropped.
        layer_options={"capacity": 1},
    ),
    "redis": Engine("Redis + its pub/sub", redis=_DURABLE_REDIS, redis_store=True),
    "redis-forgetful": Engine(
        "Redis that forgets + its pub/sub",
        redis=_FORGETFUL_REDIS,
        redis_store=True,
        forgetful=True,
    ),
    "redis-cluster": Engine(
        "Redis Cluster + its sharded pub/sub", several_redis=redis.serve_cluster, forgetful=True
    ),
    "redis-sentinel": Engine(
        "Redis behind Sentinels + its pub/sub", several_redis=redis.serve_sentinels, forgetful=True
    ),
}


def _database(port: int) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": port,
    }


def _end_sessions(port: int) -> None:
    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", autocommit=True) as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
