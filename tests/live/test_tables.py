"""A table in a page that stays in step with a model, whichever process changes its rows."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.live.browser import Browser, Tab, wait_until
from tests.live.servers import ROOT, project_environment
from tests.live.sites import Site

pytestmark = pytest.mark.in_turn

PAGE = """
<table><tbody id="teams"></tbody></table>
<event-stream src="/events/teams/" event="group-created group-updated"
  target="#teams" swap="beforeend"></event-stream>
<event-stream src="/events/teams/" event="group-deleted" swap="remove"></event-stream>
"""
ROWS = "return [...document.querySelectorAll('#teams > tr')].map((row) => row.outerHTML)"
NODES = "return document.querySelector('#teams').childNodes.length"


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Tab]:
    """A page that shows the teams."""
    shell(site, "Group.objects.all().delete()")
    with Tab.open(browser, site.origin) as tab:
        tab.run("return define()")
        tab.run("document.body.innerHTML = arguments[0]", PAGE)
        wait_until(
            lambda: tab.run("return !document.querySelector('event-stream:not([state=open])')"),
            "its streams are not open",
        )
        yield tab


def shell(site: Site, *statements: str) -> None:
    """Change rows in a process of its own."""
    code = "\n".join(["from django.contrib.auth.models import Group", *statements])
    subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", code],
        cwd=ROOT,
        env=project_environment(site.server.directory),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )


def wait_for_names(page: Tab, *names: str) -> None:
    def shown() -> list[str]:
        rows: list[str] = page.run(ROWS)
        return [row.partition("<td>")[2].partition("</td>")[0] for row in rows]

    wait_until(lambda: shown() == [*names], lambda: str(shown()))


def test_its_rows_come_change_and_go(page: Tab, site: Site) -> None:
    shell(site, "for name in ('one', 'two', 'three'): Group.objects.create(name=name)")
    wait_for_names(page, "one", "two", "three")
    nodes = page.run(NODES)
    shell(site, "two = Group.objects.get(name='two')", "two.name = '<b>2</b>'", "two.save()")
    wait_for_names(page, "one", "&lt;b&gt;2&lt;/b&gt;", "three")
    # Nothing piles up.
    assert page.run(NODES) == nodes
    shell(site, "Group.objects.get(name='one').delete()")
    wait_for_names(page, "&lt;b&gt;2&lt;/b&gt;", "three")


def test_what_changes_while_it_is_away_is_made_up_for(page: Tab, site: Site) -> None:
    shell(site, "for name in ('one', 'two'): Group.objects.create(name=name)")
    wait_for_names(page, "one", "two")
    with site.network.cut():
        shell(
            site,
            "Group.objects.get(name='one').delete()",
            "two = Group.objects.get(name='two')",
            "two.name = 'changed'",
            "two.save()",
            "Group.objects.create(name='three')",
        )
    wait_for_names(page, "changed", "three")


def test_a_row_that_comes_twice_is_there_once(page: Tab, site: Site) -> None:
    """As those do that the page shows already."""
    shell(site, "one = Group.objects.create(name='one')", "one.save()")
    wait_for_names(page, "one")
    shell(site, "Group.objects.create(name='end')")
    wait_for_names(page, "one", "end")


def test_what_is_to_be_removed_and_is_not_there_is_ignored(page: Tab, site: Site) -> None:
    site.act("/publish/teams/", data='<tr id="team-0"></tr><b>no id</b>', event="group-deleted")
    shell(site, "Group.objects.create(name='end')")
    wait_for_names(page, "end")
