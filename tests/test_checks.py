from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
from channels.routing import ProtocolTypeRouter
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Model
from pytest_django import Settings

from django_sse import publish
from django_sse.asgi import EventStreamApplication
from django_sse.stores.memory import MemoryStore
from tests.redis import RedisSentinels

WRAPPED = "demo_project.asgi.application"
BROKEN = f"{__name__}.no_such_application"

IN_MEMORY_LAYER = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


async def bare_application(scope: Any, receive: Any, send: Any) -> None: ...


class OwnApplication(EventStreamApplication):
    """What a project may make of the wrapper."""


own_application = OwnApplication(bare_application)
router_round_wrapped = ProtocolTypeRouter({"http": own_application, "websocket": bare_application})
router_round_bare = ProtocolTypeRouter({"http": bare_application})
router_without_http = ProtocolTypeRouter({"websocket": bare_application})
wrapped_router = EventStreamApplication(router_round_bare)


class KeepAway:
    """A database router that keeps the tables of django_sse away from the default alias."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "django_sse" else None

    def db_for_read(self, model: type[Model], **hints: Any) -> None: ...


class ProblemStore(MemoryStore):
    """A store that finds something wrong with itself."""

    def check(self) -> list[CheckMessage]:
        return [CheckMessage(30, "Something is wrong.", id="other.W001")]


@pytest.fixture(autouse=True)
def fine_settings(settings: Settings) -> None:
    """Settings that nothing is wrong with."""
    settings.DJANGO_SSE = {}
    settings.ASGI_APPLICATION = WRAPPED
    settings.CHANNEL_LAYERS = IN_MEMORY_LAYER


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of an SQLite database in a file, for a test to change."""
    # Not the proxy that django.db offers: monkeypatch could not undo a change of that.
    connection = connections[DEFAULT_DB_ALIAS]
    changed = {
        **connection.settings_dict,
        "NAME": "db.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL",
        },
    }
    monkeypatch.setattr(connection, "settings_dict", changed)
    return changed


def found() -> dict[str | None, CheckMessage]:
    return {message.id: message for message in run_checks(tags=["django_sse"])}


def test_nothing_is_wrong_with_settings_that_are_fine() -> None:
    assert found() == {}


def test_manage_py_check_shows_what_is_wrong(settings: Settings) -> None:
    settings.DJANGO_SSE = {"HISTORY": 5}
    with pytest.raises(SystemCheckError, match=r"django_sse\.E001.*no key 'HISTORY'"):
        call_command("check", databases=["default"])


SECRET_URLS = [
    "redis://user:pa55word@host:6379/0",
    "redis://:pa55word@host:no-port",
    "redis://:no/pa55word@host",
    "redis://:no?pa55word=@host",
    "pa55word@host:6379",
    "redis://host?db=pa55word",
    "redis+cluster://user:pa55word@host:6379/7",
    "redis+sentinel://user:pa55word@host:26379",
    "redis+sentinel://host:26379/main?sentinel_password=pa55word&pool=5",
    "rediss+sentinel://user:12/pa55word@host:26379/main",
    "rediss+sentinel://user:12/pa55word@host",
    "redis+cluster://user:12/pa55word@host",
    "redis+pa55word://host",
]


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize(
    "setting",
    [
        lambda url: {"STORE": url},
        lambda url: {"STORE": {"BACKEND": url}},
        lambda url: {"STORE": {"BACKEND": "redis", "URL": url}},
        lambda url: {"STORE": {"BACKEND": "redis", "OPTIONS": url}},
        lambda url: {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url, "prefixes": ""}}},
        lambda url: {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}},
    ],
)
def test_no_check_shows_a_password(settings: Settings, setting: Any, url: str) -> None:
    settings.DJANGO_SSE = setting(url)
    for message in run_checks(tags=["django_sse"]):
        assert "pa55word" not in f"{message.msg} {message.hint}"


@pytest.mark.parametrize("url", SECRET_URLS[1:5])
def test_nor_does_publishing(settings: Settings, url: str) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}}
    with pytest.raises(Exception) as raised:  # noqa: PT011
        publish("news", "x")
    assert "pa55word" not in "".join(format_exception(raised.value))


# E001 and E002: the setting


def test_e001_lists_what_is_accepted_for_each_problem(settings: Settings) -> None:
    settings.DJANGO_SSE = {"HISTORY": 5, "RETRY": "3"}
    unknown, wrong = run_checks(tags=["django_sse"])
    assert unknown.id == wrong.id == "django_sse.E001"
    assert unknown.is_serious()
    assert "DJANGO_SSE has no key 'HISTORY'. It accepts: STORE, HISTORY_SIZE, " in unknown.msg
    assert wrong.msg == (
        "DJANGO_SSE['RETRY'] must be a whole number of milliseconds from 100 to 2147483647 (less "
        "looks like seconds: 3 seconds are 3000), not '3'."
    )


def test_e001_is_credentials_for_the_pages_of_every_origin(settings: Settings) -> None:
    settings.DJANGO_SSE = {"ALLOWED_ORIGINS": ["*"], "ALLOW_CREDENTIALS": True}
    [message] = run_checks(tags=["django_sse"])
    assert message.id == "django_sse.E001"
    assert "name the ALLOWED_ORIGINS" in message.msg


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("ALLOWED_ORIGINS", ["https://app.example.com/"], "a list of origins such as"),
        ("ALLOW_CREDENTIALS", "yes", "True or False"),
        ("REFUSE_SOFTLY", None, "True or False"),
        ("MAX_STREAMS", 0, "a whole number above 0, or None"),
        ("MAX_OPEN_GROUPS", "many", "a whole number above 0, or None"),
        ("TRUSTED_PROXIES", ["localhost"], "a list of addresses and networks such as"),
    ],
)
def test_e001_is_a_limit_or_a_list_that_cannot_be_read(
    settings: Settings, key: str, value: Any, accepted: str
) -> None:
    settings.DJANGO_SSE = {key: value}
    [message] = run_checks(tags=["django_sse"])
    assert message.id == "django_sse.E001"
    assert message.msg.startswith(f"DJANGO_SSE[{key!r}] must be {accepted}")


def test_e001_is_not_given_for_limits_and_origins_that_are_fine(settings: Settings) -> None:
    settings.DJANGO_SSE = {
        "ALLOWED_ORIGINS": ["https://app.example.com"],
        "ALLOW_CREDENTIALS": True,
        "MAX_STREAMS": 5000,
        "MAX_STREAMS_PER_USER": 10,
        "TRUSTED_PROXIES": ["127.0.0.1", "10.0.0.0/8", "unix:"],
    }
    assert found() == {}


def test_e001_is_not_given_without_the_setting(settings: Settings) -> None:
    del settings.DJANGO_SSE
    assert found() == {}


@pytest.mark.parametrize(
    "store",
    [
        "cassette",
        "no.such.Store",
        "django_sse.stores.memory.NoSuchStore",
        # No store, and one that takes no such option.
        "collections.OrderedDict",
        {"BACKEND": "memory", "OPTIONS": {"size": 5}},
    ],
)
def test_e002_is_a_store_that_cannot_be_used(settings: Settings, store: Any) -> None:
    settings.DJANGO_SSE = {"STORE": store}
    messages = found()
    assert list(messages) == ["django_sse.E002"]
    assert messages["django_sse.E002"].is_serious()
    assert messages["django_sse.E002"].msg.startswith("DJANGO_SSE['STORE'] names ")


def test_e002_lists_the_stores_that_there_are(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "cassette"}
    assert (
        "Choose one of database, memory, redis, or the dotted path"
        in found()["django_sse.E002"].msg
    )


@pytest.mark.parametrize(
    "store",
    [
        "database",
        "django_sse.stores.database.DatabaseStore",
        {"BACKEND": "database", "OPTIONS": {"using": "default"}},
    ],
)
def test_e002_is_not_given_for_a_store_that_can(settings: Settings, store: Any) -> None:
    settings.DJANGO_SSE = {"STORE": store}
    assert found() == {}


def test_a_store_of_a_projects_own_has_its_own_checks(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": f"{__name__}.ProblemStore"}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    assert list(found()) == ["other.W001"]


# E003, E004 and E006: the database store


def test_e003_is_an_alias_that_there_is_none_of(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "database", "OPTIONS": {"using": "nowhere"}}}
    messages = found()
    assert list(messages) == ["django_sse.E003"]
    assert "'nowhere', which DATABASES lacks" in messages["django_sse.E003"].msg
    assert "Set the option `using` to one of default" in str(messages["django_sse.E003"].hint)


def test_e004_is_a_router_that_keeps_the_tables_away(settings: Settings) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}.KeepAway"]
    messages = found()
    assert list(messages) == ["django_sse.E004"]
    assert "'default', but a database router" in messages["django_sse.E004"].msg
    assert '"OPTIONS": {"using": ...}' in str(messages["django_sse.E004"].hint)


def test_e006_is_a_database_that_was_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "vendor", "oracle")
    messages = found()
    assert list(messages) == ["django_sse.E006"]
    assert (
        "does not support oracle, the database of the alias 'default'"
        in messages["django_sse.E006"].msg
    )
    assert "SQLite, PostgreSQL, MySQL or MariaDB" in str(messages["django_sse.E006"].hint)


def test_e003_e004_and_e006_are_not_given_for_the_memory_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "vendor", "oracle")
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "memory"}}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.layers.GatedLayer"}}
    settings.DATABASE_ROUTERS = [f"{__name__}.KeepAway"]
    assert found() == {}


# E005: the redis store


@pytest.mark.parametrize(
    "url", [None, "", "localhost:6379", "redis://localhost?db=first", "redis://localhost?pool=5"]
)
def test_e005_is_a_url_that_redis_py_cannot_read(settings: Settings, url: Any) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}}
    messages = found()
    assert list(messages) == ["django_sse.E005"]
    assert messages["django_sse.E005"].is_serious()
    assert '"redis://user:password@host:6379/0"' in str(messages["django_sse.E005"].hint)


@pytest.mark.parametrize(
    "url",
    [
        "redis://nobody.invalid:1/0",
        "rediss://user:secret@nobody.invalid?socket_timeout=2&max_connections=5",
        "unix:///no/such.sock?db=1",
        "redis+cluster://nobody.invalid:1,[::1]:2/0?socket_timeout=2",
        "rediss+cluster://user:secret@nobody.invalid",
        "redis+sentinel://127.0.0.1:1,[::1]:1/main",
        "redis+sentinel://user:secret@127.0.0.1:1/main/3?sentinel_password=secret",
    ],
)
def test_e005_is_not_given_for_a_redis_that_is_away(settings: Settings, url: str) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}}
    assert found() == {}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://host:6379/1", "names database 1, and a Redis Cluster has no other than"),
        ("redis+cluster://host:6379?db=2", "names database 2, and a Redis Cluster has no other"),
        ("redis+cluster://host:6379/main", "names a service, which only redis+sentinel:// has"),
        ("redis+cluster://host:6379/main/0", "names a service, which only redis+sentinel:// has"),
        ("redis+sentinel://host:26379", "names no service of the Sentinels"),
        ("redis+sentinel://host:26379/0", "names no service of the Sentinels"),
        ("redis+sentinel://host/main/first", "has a path other than /name/0"),
        ("redis+cluster+sentinel://host/main", "is not accepted by redis-py"),
        ("redis+both://host/main", "begins like none of redis://, redis+cluster:// and"),
        ("redis+cluster://host:first", "is not accepted by redis-py"),
        ("redis+cluster://host,", "is not accepted by redis-py"),
        ("redis+sentinel://host/main?pool=5", "is not accepted by redis-py"),
    ],
)
def test_e005_says_what_cannot_be_of_several_servers(
    settings: Settings, url: str, says: str
) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}}
    messages = found()
    assert list(messages) == ["django_sse.E005"]
    assert says in messages["django_sse.E005"].msg
    assert "redis+sentinel://host:26379,host:26379/service/0" in str(
        messages["django_sse.E005"].hint
    )


def test_e005_is_a_prefix_that_chooses_a_server(settings: Settings) -> None:
    options = {"url": "redis+cluster://host", "prefix": "{sse}"}
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": options}}
    assert "`prefix` has a brace: '{sse}'" in found()["django_sse.E005"].msg


@pytest.mark.once
def test_e009_is_a_service_that_the_sentinels_do_not_know(
    settings: Settings, redis_sentinels: RedisSentinels
) -> None:
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": redis_sentinels.url}}}
    assert found() == {}
    url = redis_sentinels.url.replace("/main/", "/mane/")
    settings.DJANGO_SSE = {"STORE": {"BACKEND": "redis", "OPTIONS": {"url": url}}}
    messages = found()
    assert list(messages) == ["django_sse.E009"]
    assert "know no service 'mane'" in messages["django_sse.E009"].msg
    assert "They know main." in str(messages["django_sse.E009"].hint)


# W001 and W002: ASGI


def test_w001_is_a_project_without_an_asgi_application(settings: Settings) -> None:
    del settings.ASGI_APPLICATION
    messages = found()
    assert list(messages) == ["django_sse.W001"]
    assert "refused over WSGI" in messages["django_sse.W001"].msg
    assert "django_sse.asgi.get_asgi_application" in str(messages["django_sse.W001"].hint)


@pytest.mark.parametrize("path", [BROKEN, "no.such.application"])
def test_w001_is_an_asgi_application_that_cannot_be_imported(settings: Settings, path: str) -> None:
    settings.ASGI_APPLICATION = path
    messages = found()
    assert list(messages) == ["django_sse.W001"]
    assert "cannot be imported" in messages["django_sse.W001"].msg


@pytest.mark.parametrize("name", ["bare_application", "router_round_bare", "router_without_http"])
def test_w002_is_an_application_that_is_not_wrapped(settings: Settings, name: str) -> None:
    settings.ASGI_APPLICATION = f"{__name__}.{name}"
    messages = found()
    assert list(messages) == ["django_sse.W002"]
    assert f"{__name__}.{name} is not wrapped" in messages["django_sse.W002"].msg
    assert "wrap it in django_sse.asgi.EventStreamApplication" in str(
        messages["django_sse.W002"].hint
    )


@pytest.mark.parametrize("name", ["own_application", "router_round_wrapped", "wrapped_router"])
def test_w001_and_w002_are_not_given_for_a_wrapped_application(
    settings: Settings, name: str
) -> None:
    settings.ASGI_APPLICATION = f"{__name__}.{name}"
    assert found() == {}


# W003 and W004: the channel layer


@pytest.mark.parametrize(
    "layers",
    [
        {},
        {"other": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        {"default": {"BACKEND": "no.such.Layer"}},
        {"default": {}},
    ],
)
def test_w003_is_no_channel_layer(settings: Settings, layers: dict[str, Any]) -> None:
    settings.CHANNEL_LAYERS = layers
    messages = found()
    assert list(messages) == ["django_sse.W003"]
    assert "CHANNEL_LAYERS = " in str(messages["django_sse.W003"].hint)


def test_w004_is_memory_beside_memory(settings: Settings) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    messages = found()
    assert list(messages) == ["django_sse.W004"]
    assert 'DJANGO_SSE = {"STORE": "database"}' in str(messages["django_sse.W004"].hint)


@pytest.mark.parametrize("name", ["GatedLayer", "OwnInMemoryLayer"])
def test_w003_and_w004_are_not_given_for_a_layer_that_crosses_processes(
    settings: Settings, name: str
) -> None:
    settings.DJANGO_SSE = {"STORE": "memory"}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"tests.layers.{name}"}}
    assert found() == {}


# W005: SQLite


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate", "EXCLUSIVE"])
@pytest.mark.parametrize(
    "command",
    [
        "PRAGMA journal_mode=WAL",
        "PRAGMA journal_mode = wal;",
        "PRAGMA synchronous=NORMAL; PRAGMA journal_mode=WAL; PRAGMA cache_size=2000",
    ],
)
def test_w005_is_not_given_for_wal_with_immediate_transactions(
    sqlite: dict[str, Any], mode: str, command: str
) -> None:
    sqlite["OPTIONS"] = {"transaction_mode": mode, "init_command": command}
    assert found() == {}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "WAL"),
        ({"transaction_mode": "IMMEDIATE"}, "WAL"),
        (
            {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=DELETE"},
            "WAL",
        ),
        ({"init_command": "PRAGMA journal_mode=WAL"}, "IMMEDIATE transactions"),
        (
            {"transaction_mode": "DEFERRED", "init_command": "PRAGMA journal_mode=WAL"},
            "IMMEDIATE transactions",
        ),
    ],
)
def test_w005_is_sqlite_that_locks_publishers_out(
    sqlite: dict[str, Any], options: dict[str, Any], missing: str
) -> None:
    sqlite["OPTIONS"] = options
    messages = found()
    assert list(messages) == ["django_sse.W005"]
    assert f"'default' is not set to {missing}: " in messages["django_sse.W005"].msg
    assert '"transaction_mode": "IMMEDIATE"' in str(messages["django_sse.W005"].hint)
    assert "PRAGMA journal_mode=WAL" in str(messages["django_sse.W005"].hint)


@pytest.mark.parametrize("name", [":memory:", "file:shared?mode=memory&cache=shared"])
def test_w005_is_not_given_for_a_database_in_memory(sqlite: dict[str, Any], name: str) -> None:
    sqlite.update(NAME=name, OPTIONS={})
    assert found() == {}


@pytest.mark.parametrize("name", ["memory-game/db.sqlite3", Path("memory.sqlite3")])
def test_w005_is_given_for_a_file_whose_name_speaks_of_memory(
    sqlite: dict[str, Any], name: str | Path
) -> None:
    sqlite.update(NAME=name, OPTIONS={})
    assert list(found()) == ["django_sse.W005"]


@pytest.mark.parametrize("vendor", ["postgresql", "mysql"])
def test_e006_and_w005_are_not_given_for_other_databases_that_are_supported(
    sqlite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, vendor: str
) -> None:
    sqlite["OPTIONS"] = {}
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "vendor", vendor)
    assert found() == {}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module.dumps", "cannot be imported"),
        ("json.no_such_function", "cannot be imported"),
        ("decimal.Decimal", "no subclass of json.JSONEncoder"),
        ("math.pi", "which is float"),
    ],
)
def test_an_encoder_that_encodes_nothing_is_an_error(
    settings: Settings, path: str, says: str
) -> None:
    settings.DJANGO_SSE = {"ENCODER": path}
    assert says in found()["django_sse.E008"].msg


@pytest.mark.parametrize("path", ["orjson.dumps", "rest_framework.utils.encoders.JSONEncoder"])
def test_an_encoder_of_another_library_is_fine(settings: Settings, path: str) -> None:
    settings.DJANGO_SSE = {"ENCODER": path}
    assert "django_sse.E008" not in found()
