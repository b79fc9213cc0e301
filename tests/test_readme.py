"""What the README says is what the code does."""

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock
from urllib.parse import urlencode

import pytest
from _pytest.mark import ParameterSet
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import BaseCommand, get_commands, load_command_class
from django.db import connection, models
from django.test import AsyncClient, AsyncRequestFactory, RequestFactory, override_settings
from django.urls import re_path

import django_sse
from django_sse import apublish, position, publish
from django_sse.conf import Conf
from django_sse.event import RESERVED_NAMES
from django_sse.stores import STORES
from django_sse.views import EventStreamView
from tests.streams import reading

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(django_sse.__file__).parent
README = (ROOT / "README.md").read_text()

# What Django's View and the HTTP methods are to a class-based view, not to a stream.
_OF_DJANGO = {"as_view", "get", "head"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    _, _, rest = README.partition(f"\n## {title}\n")
    assert rest, f"The README has no section {title!r}."
    return rest.partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Return the rows of the section's tables whose first cell is code, as lists of cells."""
    lines = (line for line in section(title).splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(cell: str) -> str:
    match = re.match(r"`([^`]+)`", cell)
    assert match, f"{cell!r} does not begin with code."
    return match[1]


@pytest.fixture
def examples() -> Iterator[dict[str, Any]]:
    """The names that all python blocks define, run one after the other."""
    namespace: dict[str, Any] = {"__name__": "readme", "BASE_DIR": Path()}
    with override_settings(DJANGO_SSE={"STORE": "memory"}):
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), namespace)
        yield namespace


def test_every_python_block_runs(examples: dict[str, Any]) -> None:
    assert issubclass(examples["Board"], EventStreamView)


def test_every_import_is_of_a_name_that_exists() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "django_sse"
            ):
                continue
            module = import_module(node.module or "")
            names = {alias.name for alias in node.names}
            assert names <= set(getattr(module, "__all__", vars(module)))


def test_every_public_name_is_mentioned() -> None:
    words = set(re.findall(r"\w+", README))
    assert set(django_sse.__all__) <= words


async def test_the_first_example_streams_what_it_publishes(examples: dict[str, Any]) -> None:
    request = AsyncRequestFactory().get("/events/")
    response = await examples["Headlines"].as_view()(request)
    assert response["Content-Type"] == "text/event-stream; charset=utf-8"
    async with aclosing(aiter(response.streaming_content)) as chunks:
        await anext(chunks)
        await examples["apublish"]("news", {"title": "hi"}, event="headline")
        assert b'event: headline\ndata: {"title":"hi"}\n\n' in await anext(chunks)


def test_what_names_tenants_is_in_the_same_example(examples: dict[str, Any]) -> None:
    of_tenants = [block for block in blocks("python") if '"NAMESPACE"' in block]
    assert of_tenants
    for block in of_tenants:
        defined: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), defined)
        for path in defined["DJANGO_SSE"].values():
            assert callable(defined[path.removeprefix("mysite.tenants.")])


async def test_the_tenants_of_the_example_are_kept_apart(examples: dict[str, Any]) -> None:
    of_example = {"NAMESPACE": f"{__name__}.named_in_example"}
    globals()["named_in_example"] = examples["current_tenant"]
    view = EventStreamView.as_view(groups=["news"])
    with override_settings(DJANGO_SSE={"STORE": "memory", **of_example}):
        with examples["in_tenant"]("north"):
            response = await view(AsyncRequestFactory().get("/"))
        async with reading(response) as stream:
            for name in ("south", "north"):
                with examples["in_tenant"](name):
                    await apublish("news", f"of the {name}")
            assert (await stream.next_event()).data == "of the north"


def test_the_publishing_examples_publish(examples: dict[str, Any]) -> None:
    before = publish("news", "before").id
    examples["tick"]()
    assert position("news") != before


# The views, asked by anybody


def views() -> Iterator[ParameterSet]:
    """Yield the block and the name of each view among the examples, and whether it is guarded."""
    for block in blocks("python"):
        for node in ast.parse(block).body:
            match node:
                case ast.ClassDef(
                    name, bases=[*_, ast.Name("EventStreamView")]
                ) | ast.AsyncFunctionDef(name, ast.arguments(args=[ast.arg("request"), *_])):
                    # It reads the user, or a mixin does.
                    source = ast.get_source_segment(block, node) or ""
                    is_guarded = bool(re.search("auser|RequiredMixin|UserPasses", source))
                    yield pytest.param(block, name, is_guarded, id=name)


def example(name: str, containing: str, examples: dict[str, Any]) -> Any:
    """Return what is called so in the block that contains a text, since names come twice."""
    [block] = [block for block in blocks("python") if containing in block]
    exec(compile(block, "README.md", "exec"), examples)
    return examples[name]


@contextmanager
def served(view: Any) -> Iterator[None]:
    """Serve a view at ``/<pk>/``."""
    if isinstance(view, type):
        view = view.as_view()  # type: ignore[attr-defined]
    parameters = signature(view).parameters
    route = r"^(?P<pk>\d+)/$" if {"pk", "kwargs"} & parameters.keys() else r"^\d+/$"

    class Urls:
        urlpatterns = [re_path(route, view)]

    with override_settings(ROOT_URLCONF=Urls):
        yield


def model(name: str, **fields: Any) -> Any:
    meta = type("Meta", (), {"app_label": "tests"})
    return type(name, (models.Model,), {"__module__": __name__, "Meta": meta, **fields})


Room = model("Room", members=models.ManyToManyField(User, related_name="rooms"))
Membership = model(
    "Membership",
    room=models.ForeignKey(Room, models.CASCADE),
    user=models.ForeignKey(User, models.CASCADE, related_name="+"),
)
Card = model(
    "Card", board=models.ForeignKey(Room, models.CASCADE), title=models.CharField(max_length=9)
)
Job = model("Job", owner=models.ForeignKey(User, models.SET_NULL, null=True, related_name="+"))


@pytest.fixture
def tables(transactional_db: None) -> Iterator[None]:
    """The models that the examples ask who may read what, in the database."""
    with connection.schema_editor() as editor:
        for table in (Room, Membership, Card, Job):
            editor.create_model(table)
    yield
    with connection.schema_editor() as editor:
        for table in (Job, Card, Membership, Room):
            editor.delete_model(table)


# What a client may say that it has got.
MADE_UP = ["", "x", "-1", "-1000000", "1.5", "\u00b2", "9" * 5000, "\0", "a.b~c.d"]


@pytest.mark.usefixtures("tables", "everything_ends")
@pytest.mark.parametrize(("block", "name", "is_guarded"), [*views()])
@pytest.mark.parametrize("pk", [1, 10**30], ids=["one", "huge"])
async def test_each_view_answers_a_stranger(
    async_client: AsyncClient,
    examples: dict[str, Any],
    block: str,
    name: str,
    is_guarded: bool,
    pk: int,
) -> None:
    exec(compile(block, "README.md", "exec"), examples)
    with served(examples[name]):
        for last_event_id in MADE_UP:
            query = urlencode({"lastEventId": last_event_id})
            response = await async_client.get(f"/{pk}/?{query}")
            if is_guarded:
                assert response.status_code in (401, 403)
            else:
                assert response.status_code == 200
                async with reading(response) as reader:
                    await reader.opened()


@pytest.mark.usefixtures("tables", "everything_ends")
@pytest.mark.parametrize(
    ("name", "containing"),
    [("Room", "user.rooms"), ("job", "Job.objects"), ("Room", "Membership.objects")],
)
async def test_users_read_what_is_theirs_and_nothing_else(
    async_client: AsyncClient, examples: dict[str, Any], name: str, containing: str
) -> None:
    view = example(name, containing, examples)
    examples |= {"Membership": Membership, "Job": Job}
    ada, grace = [await User.objects.acreate(username=name) for name in ("ada", "grace")]
    room = await Room.objects.acreate(pk=1)
    await room.members.aadd(ada)
    await Membership.objects.acreate(room=room, user=ada)
    await Job.objects.acreate(pk=1, owner=ada)
    # Its owner was deleted.
    await Job.objects.acreate(pk=2, owner=None)
    with served(view):
        for pk in (1, 2):
            assert (await async_client.get(f"/{pk}/")).status_code in (401, 403)
        await async_client.aforce_login(ada)
        async with reading(await async_client.get("/1/")) as reader:
            await reader.opened()
        for pk in (2, 10**30):
            assert (await async_client.get(f"/{pk}/")).status_code == 403
        await async_client.aforce_login(grace)
        assert (await async_client.get("/1/")).status_code == 403


@pytest.mark.usefixtures("tables", "everything_ends")
async def test_a_board_shows_its_cards_and_one_that_cannot_be_has_none(
    async_client: AsyncClient, examples: dict[str, Any]
) -> None:
    examples |= {"Card": Card}
    board = await Room.objects.acreate(pk=1)
    await Card.objects.acreate(board=board, title="one")
    await async_client.aforce_login(await User.objects.acreate(username="ada"))
    with served(examples["Board"]):
        for pk, cards in ((1, ["card"]), (10**30, [])):
            async with reading(await async_client.get(f"/{pk}/")) as reader:
                await reader.opened()
                await apublish("announcements", "the end", event="end")
                events = await reader.until("the end")
            assert [event.event for event in events] == [*cards, "end"]


async def test_nobody_is_still_allowed(examples: dict[str, Any]) -> None:
    view = example("Room", "Membership.objects", examples)()
    examples["Membership"] = Membership
    request = AsyncRequestFactory().get("/")
    # As `auser` is after the end of a session.
    request.auser = AsyncMock(return_value=AnonymousUser())
    view.setup(request, pk=1)
    assert await view.still_allowed() is False


@pytest.mark.parametrize(
    ("last_event_id", "first"), [("3", 4), ("9", 10), *((made_up, 1) for made_up in MADE_UP)]
)
async def test_the_generator_begins_behind_an_id_of_its_own_alone(
    examples: dict[str, Any], last_event_id: str, first: int
) -> None:
    view = example("count", "async def count(", examples)
    examples["asyncio"] = Mock(sleep=AsyncMock())
    query = urlencode({"lastEventId": last_event_id})
    async with reading(await view(AsyncRequestFactory().get(f"/?{query}"))) as reader:
        *steps, close = await reader.rest()
    assert [event.json()["step"] for event in steps] == [*range(first, 11)]
    assert close.event == "close"


@pytest.mark.parametrize("title", ["", "a" * 300_000])
def test_any_title_is_submitted(examples: dict[str, Any], title: str) -> None:
    response = examples["submit"](RequestFactory().post("/", {"title": title} if title else {}))
    assert response.status_code == 202


def test_the_settings_table_lists_every_key_with_its_default() -> None:
    table = {code(key): ast.literal_eval(code(default)) for key, default, *_ in rows("Settings")}
    assert table == {key.name: key.default for key in fields(Conf)}


def test_the_settings_table_says_how_each_key_is_switched_off() -> None:
    for name, _, _, off in rows("Settings"):
        rule = Conf.__dataclass_fields__[code(name)].metadata["rule"]
        by_none = "`None`" if rule.admits(None) else "no"
        assert off.startswith("`0`" if rule.accepts.endswith("0 for off") else by_none), name


def test_the_view_table_lists_every_attribute_with_its_default() -> None:
    table = {
        re.sub(r"^async |\(.*\)$", "", code(name)): default for name, default, *_ in rows("Views")
    }
    public = {name for name in vars(EventStreamView) if not name.startswith("_")} - _OF_DJANGO
    assert table.keys() == public
    for name in public:
        value = getattr(EventStreamView, name)
        if not callable(value):
            assert ast.literal_eval(code(table[name])) == value


def test_the_check_table_lists_every_id_that_the_code_gives() -> None:
    sources = [PACKAGE / "checks.py", *(PACKAGE / "stores").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    given = set(re.findall(r'"(django_sse\.[EW]\d+)"', text))
    assert [code(first) for first, *_ in rows("System checks")] == sorted(given)


def test_the_error_table_lists_every_error() -> None:
    errors = {
        name
        for name in django_sse.__all__
        if name.endswith("Cancelled") or name.startswith("Invalid")
    }
    assert {code(name) for name, _ in rows("Publish")} == errors


def test_every_reserved_name_is_mentioned() -> None:
    for name in RESERVED_NAMES:
        assert f"`{name}`" in section("Publish")


def test_the_store_table_lists_every_store() -> None:
    stores = {code(store).strip('"') for store, *_ in rows("Stores")}
    assert stores == STORES.keys()


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "manage.py"]:
                yield words[2:]


def options(command: BaseCommand) -> set[str]:
    return set(re.findall(r"--[a-z-]+", command.create_parser("manage.py", "").format_usage()))


def test_every_command_of_ours_is_shown_with_all_its_options() -> None:
    ours = [name for name, app in get_commands().items() if app == "django_sse"]
    assert ours
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


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in anchors or (ROOT / target).is_file(), target
