"""The pages of the demo's recipes; what they do is tested in a browser: ``tests/live``."""

import json
import re
from html import unescape

import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse

from demo_project import settings as demo
from demo_project.recipes.recipes import FRAGMENTS, TUTORIALS, Recipe
from tests.live.servers import ROOT

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("demo_project.urls"),
    pytest.mark.usefixtures("everything_ends"),
]

RECIPES = pytest.mark.parametrize("recipe", [*TUTORIALS, *FRAGMENTS], ids=lambda one: one.name)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what the pages take from npm were installed."""
    monkeypatch.setattr(finders, "find", lambda path: path)


def test_all_recipes_are_listed(client: Client) -> None:
    page = client.get("/recipes/").content.decode()
    links = re.findall(r'<h2><a href="(/recipes/[^"]+/)"', page)
    assert links == [f"/recipes/{recipe.name}/" for recipe in (*TUTORIALS, *FRAGMENTS)]


@RECIPES
def test_a_page_shows_the_source_of_its_server(
    client: Client, packages: None, recipe: Recipe
) -> None:
    assert source_of("server", client, recipe) == recipe.source
    for part in recipe.server:
        assert f" {part.__name__}(" in recipe.source


@RECIPES
def test_a_page_shows_the_source_of_its_client(
    client: Client, packages: None, recipe: Recipe
) -> None:
    source = source_of("client", client, recipe)
    assert f"/recipes/{recipe.name}/" in source
    assert source in client.get(f"/recipes/{recipe.name}/").content.decode()


def source_of(part: str, client: Client, recipe: Recipe) -> str:
    """Return the source of the server or the client, as the page shows it."""
    page = client.get(reverse("recipes:page", args=[recipe.name])).content.decode()
    [source] = re.findall(rf'<code id="{part}">(.*?)</code>', page, re.DOTALL)
    return unescape(re.sub(r"</?span[^>]*>", "", source))


@pytest.mark.parametrize("recipe", TUTORIALS, ids=lambda one: one.name)
def test_a_tutorial_takes_fifteen_lines_at_most(recipe: Recipe) -> None:
    lines = [line for line in recipe.source.splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.parametrize("recipe", FRAGMENTS, ids=lambda one: one.name)
def test_a_page_whose_package_is_lacking_says_so(
    client: Client, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    monkeypatch.setattr(finders, "find", lambda path: None)
    page = client.get(reverse("recipes:page", args=[recipe.name])).content.decode()
    assert f"needs the npm package <code>{recipe.package}</code>" in page
    assert 'id="client"' not in page


@pytest.mark.parametrize("recipe", FRAGMENTS, ids=lambda one: one.name)
def test_a_package_is_pinned(recipe: Recipe) -> None:
    packages = json.loads((ROOT / "demo_project/package.json").read_text())["dependencies"]
    assert recipe.package in packages
    for file in recipe.files:
        [version] = [packages[package] for package in packages if file.startswith(f"{package}/")]
        assert re.fullmatch(r"\d+\.\d+\.\d+(-[a-z]+\.\d+)?", version)


def test_the_pages_bring_their_own_style_and_script(client: Client) -> None:
    page = client.get("/recipes/digits/").content.decode()
    paths = re.findall(r'(?:href|src)="/static/([^"]*)"', page)
    assert {"demo_project/recipes.css", "demo_project/recipes.js"} < set(paths)
    assert all(finders.find(path) for path in paths)


def test_there_is_no_page_of_another_name(client: Client) -> None:
    assert client.get("/recipes/nowhere/").status_code == 404


@pytest.mark.parametrize("name", ["sell-out", "restock", "tick", "join", "htmx-tell", "turbo-end"])
def test_the_buttons_only_work_from_the_page(name: str) -> None:
    browser = Client(enforce_csrf_checks=True)
    url = reverse(f"recipes:{name}")
    assert browser.get(url).status_code == 405
    assert browser.post(url).status_code == 403
    browser.get("/recipes/no-content/")
    token = browser.cookies["csrftoken"].value
    assert browser.post(url, {"csrfmiddlewaretoken": token}).status_code == 204


@pytest.mark.parametrize("name", ["tick", "join", "leave", "htmx-tell", "turbo-tell"])
def test_what_is_too_long_is_refused(client: Client, name: str) -> None:
    long = "a" * 300_000
    fields = {"text": long, "name": long, "title": long}
    assert client.post(reverse(f"recipes:{name}"), fields).status_code == 400


@pytest.mark.parametrize("recipe", FRAGMENTS, ids=lambda one: one.name)
def test_what_is_told_after_the_end_is_a_conflict(client: Client, recipe: Recipe) -> None:
    tell, end, begin = (reverse(f"recipes:{recipe.name}-{act}") for act in ("tell", "end", "begin"))
    assert client.post(end).status_code == 204
    assert client.post(tell, {"title": "late"}).status_code == 409
    assert client.post(begin).status_code == 204
    assert client.post(tell, {"title": "again"}).status_code == 204


def test_the_demo_is_two_origins() -> None:
    assert demo.DJANGO_SSE == {
        "ALLOWED_ORIGINS": ["http://localhost:8000", "http://127.0.0.1:8000"],
        "ALLOW_CREDENTIALS": True,
    }
