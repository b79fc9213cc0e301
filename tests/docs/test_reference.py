"""All that a project can name is in the documentation, and all that it names is there."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest
from django.conf import global_settings
from django.core.management import BaseCommand, get_commands, load_command_class
from django.views import View

import django_sse
from django_sse.conf import Conf
from django_sse.event import RESERVED_NAMES
from django_sse.exceptions import EventStreamError
from django_sse.stores import STORES
from django_sse.templatetags.django_sse import register
from django_sse.views import EventStreamView
from tests.docs.pages import PAGES, README, ROOT, anchors, blocks, code, rows, section, without_code

PACKAGE = Path(django_sse.__file__).parent
DOCS = [page for page in PAGES if page != README]
SETTINGS = "docs/settings.md"

# The HTTP methods are of Django, not of a stream.
_OF_DJANGO = {"get", "head", "delete"}
# Where users import from, beside the package itself.
_MODULES = (
    *("admin", "asgi", "broadcasts", "decorators", "exceptions", "health", "mixins"),
    *("monitoring", "presence", "producing", "testing", "views"),
    *("contrib.ai_sdk", "contrib.http_publish", "contrib.opentelemetry", "contrib.prometheus"),
    *("contrib.relay", "contrib.rest_framework"),
)
# What one of these modules has for another one.
_OF_OURS = {"AccessMixin", "start_for"}
# Of the database's, the kernel's, the server's and REST framework's, and of django-eventstream.
_OF_OTHERS = (
    r"ATOMIC_REQUESTS|CONN_HEALTH_CHECKS|REST_FRAMEWORK|ASGI_APPLICATION|TCP_USER_TIMEOUT"
    r"|REMOTE_ADDR|EVENTSTREAM_\w+"
)


def public_names() -> Iterator[str]:
    yield from django_sse.__all__
    for name in _MODULES:
        module = import_module(f"django_sse.{name}")
        for public, value in vars(module).items():
            is_ours = getattr(value, "__module__", "").startswith(module.__name__)
            if is_ours and not public.startswith("_") and callable(value):
                yield public
    yield from register.tags
    yield from register.filters


@pytest.mark.parametrize("name", sorted(set(public_names()) - _OF_OURS))
def test_a_public_name_is_in_the_documentation(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", PAGES[page]) for page in DOCS)


def test_the_settings_tables_list_every_key_with_its_default() -> None:
    listed = [(code(key), default) for key, default, *_ in rows(PAGES[SETTINGS])]
    table = {key: ast.literal_eval(code(default)) for key, default in listed}
    assert table == {key.name: key.default for key in fields(Conf)}
    assert len(listed) == len(table)


def test_the_settings_tables_say_how_each_key_is_switched_off() -> None:
    for name, _, _, off in rows(PAGES[SETTINGS]):
        rule = Conf.__dataclass_fields__[code(name)].metadata["rule"]
        by_none = "`None`" if rule.admits(None) else "no"
        assert off.startswith("`0`" if rule.accepts.endswith("0 for off") else by_none), name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_by_its_path_exists(page: str) -> None:
    for path in re.findall(r"`(django_sse(?:\.[A-Za-z_]\w*)+)`", PAGES[page]):
        if path not in given_check_ids():
            resolve_name(path)


@pytest.mark.parametrize("page", PAGES)
def test_a_setting_that_a_page_names_exists(page: str) -> None:
    known = {*dir(global_settings), "DJANGO_SSE", *(key.name for key in fields(Conf))}
    for name in re.findall(r"`\"?([A-Z]+(?:_[A-Z]+)+)\"?(?:\[[^`]*)?`", PAGES[page]):
        assert name in known or re.fullmatch(_OF_OTHERS, name), name


def test_the_view_table_lists_every_attribute_with_its_default() -> None:
    table = {
        re.sub(r"^async |\(.*\)$", "", code(name)): default
        for name, default, *_ in rows(section("docs/views.md", "Class-based views"))
    }
    named = set(dir(EventStreamView)) - set(dir(View)) - _OF_DJANGO
    public = {name for name in named if not name.startswith("_")}
    assert table.keys() == public
    for name in public:
        value = getattr(EventStreamView, name)
        if not callable(value):
            assert ast.literal_eval(code(table[name])) == value


def test_the_publishing_table_has_the_signatures_of_the_functions() -> None:
    for signature, async_form, _ in rows(section("docs/publishing.md", "Functions")):
        name, _, rest = code(signature).partition("(")
        parameters = inspect.signature(getattr(django_sse, name)).parameters
        named = re.findall(
            r"(?<![\w.])([a-z]+)(?==|[,)]|$)", rest.replace("[(group, data), ...]", "events")
        )
        assert named == list(parameters)
        assert code(async_form) == f"a{name}"
        assert (
            inspect.signature(getattr(django_sse, f"a{name}")).parameters.keys()
            == parameters.keys()
        )


def given_check_ids() -> set[str]:
    sources = [PACKAGE / "checks.py", *(PACKAGE / "stores").rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    return set(re.findall(r'"(django_sse\.[EW]\d+)"', text))


def test_the_check_table_lists_every_id_that_the_code_gives() -> None:
    table = [code(first) for first, *_ in rows(PAGES["docs/system-checks.md"])]
    assert table == sorted(given_check_ids())


@pytest.mark.parametrize("page", PAGES)
def test_a_check_that_a_page_names_exists(page: str) -> None:
    assert set(re.findall(r"django_sse\.[EW]\d+", PAGES[page])) <= given_check_ids()


def test_the_error_table_lists_every_error() -> None:
    public = {name: getattr(django_sse, name) for name in django_sse.__all__}
    errors = {
        name
        for name, value in public.items()
        if isinstance(value, type)
        and issubclass(value, EventStreamError)
        and value is not EventStreamError
    }
    assert {code(name) for name, _ in rows(section("docs/publishing.md", "Errors"))} == errors


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_reserved_name_is_mentioned(name: str) -> None:
    for page in ("docs/publishing.md", "docs/in-the-browser.md"):
        assert f"`{name}`" in PAGES[page]


def test_the_store_table_lists_every_store() -> None:
    table = rows(section("docs/stores-and-processes.md", "Stores"))
    assert {code(store).strip('"') for store, *_ in table} == STORES.keys()


def test_the_tables_of_the_client_list_every_option_and_every_swap() -> None:
    client = PACKAGE / "static/django_sse"
    types = (client / "event-stream.d.ts").read_text()
    [options] = re.findall(
        r"interface EventStreamOptions \{(.*?)^\}", types, re.DOTALL | re.MULTILINE
    )
    table = rows(section("docs/in-the-browser.md", "Options"))
    listed = {name for first, *_ in table for name in re.findall(r"`(\w+)`", first)}
    assert listed == set(re.findall(r"^  (\w+)\?:", options, re.MULTILINE))


# Commands


def commands() -> Iterator[list[str]]:
    for page in PAGES:
        for block in blocks("sh", page):
            for line in block.splitlines():
                words = shlex.split(line.partition(" > ")[0], comments=True)
                if words[:2] == ["python", "manage.py"]:
                    yield words[2:]


def options(command: BaseCommand) -> set[str]:
    return set(re.findall(r"--[a-z-]+", command.create_parser("manage.py", "").format_usage()))


def test_every_command_of_ours_is_shown_with_all_its_options() -> None:
    ours = [name for name, app in get_commands().items() if app == "django_sse"]
    assert ours
    table = [code(name) for name, _ in rows(PAGES["docs/commands.md"])]
    assert sorted(table) == sorted(ours)
    for name in ours:
        shown = {word for command in commands() if command[0] == name for word in command}
        own_options = options(load_command_class("django_sse", name)) - options(BaseCommand())
        assert {name, *own_options} <= shown


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_a_command_line_is_one_that_the_command_takes(command: list[str]) -> None:
    name, *arguments = command
    app = get_commands()[name]
    assert isinstance(app, str)
    load_command_class(app, name).create_parser("manage.py", name).parse_args(arguments)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = re.findall(r"^make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE)
        assert named
        assert set(named) <= targets


# Promises


def test_every_promise_names_tests_that_exist() -> None:
    promises = re.split(
        r"^\*\*", section("docs/promises.md", "What it promises"), flags=re.MULTILINE
    )
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for promise in promises[1:]:
        tests = re.findall(r"^- `(test_\w+)`$", promise, re.MULTILINE)
        assert tests, promise
        for test in tests:
            assert re.search(rf"\bdef {test}\(", source), test


def test_the_readme_has_every_promise() -> None:
    def named(page: str) -> list[str]:
        text = section(page, "What it promises")
        return re.findall(r"^(?:- )?\*\*(.*?)\.\*\*", text, re.MULTILINE)

    assert named(README) == named("docs/promises.md")


# Links


def linked_pages() -> list[str]:
    roots = ["CONTRIBUTING.md", "SECURITY.md"]
    return [*PAGES, *roots]


@pytest.mark.parametrize("page", linked_pages())
def test_every_link_leads_somewhere(page: str) -> None:
    text = without_code((ROOT / page).read_text())
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", PAGES[README]))
    assert linked == set(DOCS)
