"""``useChat`` of Vercel's AI SDK against ``ChatView``, with the real packages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests import redis
from tests.live import ai_sdk
from tests.live.browser import Browser, Tab, wait_until
from tests.live.servers import unavailable
from tests.live.sites import Site, run
from tests.views import runs_of

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def sites(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Site]]:
    """Two processes of a project."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with run(directory) as site, run(directory) as other:
            yield site, other
        return
    if not redis.binary():
        unavailable("redis-server is not installed")
    with redis.serve() as server:
        store = {"BACKEND": "redis", "OPTIONS": {"url": server.url}}
        with run(directory, STORE=store) as site, run(directory, STORE=store) as other:
            yield site, other


@pytest.fixture
def site(sites: tuple[Site, Site]) -> Site:
    return sites[0]


@pytest.fixture
def other_site(sites: tuple[Site, Site]) -> Site:
    return sites[1]


class Chat:
    """A chat in a tab, as its page shows it."""

    def __init__(self, tab: Tab, id: str, *, resume: bool = False) -> None:
        self._tab = tab
        tab.run("document.cookie = `csrftoken=${'a'.repeat(32)}; path=/`")
        tab.run(ai_sdk.bundle() + "; window.show(arguments[0], arguments[1]);", id, resume)
        wait_until(lambda: tab.run("return !!window.chat"), "there is no chat")

    def ask(self, text: str) -> "Chat":
        self._tab.run("chat.sendMessage({ text: arguments[0] })", text)
        return self

    def run(self, script: str) -> Any:
        return self._tab.run(script)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of the last answer, without what says that a step begins, and what is null."""
        messages: list[dict[str, Any]] = self._tab.run("return chat.messages")
        answers = [message for message in messages if message["role"] == "assistant"]
        parts = answers[-1]["parts"] if answers else []
        return [
            {name: value for name, value in part.items() if value is not None}
            for part in parts
            if part["type"] != "step-start"
        ]

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def status(self) -> str:
        return str(self._tab.run("return chat.status"))

    def until(self, status: str) -> "Chat":
        wait_until(lambda: self.status == status, lambda: f"{self.status}: {self.parts}")
        return self

    def until_text(self) -> "Chat":
        wait_until(lambda: self.text, "no text comes")
        return self


def counted(to: int) -> str:
    return "".join(f"{number} " for number in range(to))


def runs(site: Site, id: str) -> list[str]:
    return runs_of(site.server.directory, id).read_text().split()


def end(site: Site, id: str) -> None:
    """End an answer that is held."""
    runs_of(site.server.directory, id).with_suffix(".over").touch()


def reload(tab: Tab, site: Site) -> None:
    tab.go(f"{site.origin}/event-sources/")


def test_an_answer_is_shown(tab: Tab, group: str) -> None:
    chat = Chat(tab, group).ask("count 5").until_text().until("ready")
    assert chat.parts == [{"type": "text", "text": counted(5), "state": "done"}]


def test_a_page_that_is_reloaded_shows_all_of_it(tab: Tab, site: Site, group: str) -> None:
    Chat(tab, group).ask("hold 300").until_text()
    for _ in range(3):
        reload(tab, site)
        chat = Chat(tab, group, resume=True).until_text()
    end(site, group)
    assert chat.until("ready").text == counted(300)
    assert runs(site, group) == ["begun", "closed"]
    reload(tab, site)
    # Nothing is written any more, so nothing is resumed.
    chat = Chat(tab, group, resume=True)
    wait_until(lambda: site.statuses(f"/chat/{group}/stream")[-1] == 204, "it does not ask")
    assert chat.until("ready").text == ""


def test_a_second_tab_at_another_process_shows_it_too(
    browser: Browser, tab: Tab, site: Site, other_site: Site, group: str
) -> None:
    first = Chat(tab, group).ask("hold 200").until_text()
    with Tab.open(browser, other_site.origin) as other:
        second = Chat(other, group, resume=True).until_text()
        end(site, group)
        assert second.until("ready").text == counted(200)
    assert first.until("ready").text == counted(200)
    assert runs(site, group) == ["begun", "closed"]


def test_it_is_stopped_from_another_tab_at_another_process(
    browser: Browser, tab: Tab, site: Site, other_site: Site, group: str
) -> None:
    first = Chat(tab, group).ask("count 10000").until_text()
    with Tab.open(browser, other_site.origin) as other:
        second = Chat(other, group, resume=True).until_text()
        status = second.run(
            "return fetch(`/chat/${chat.id}/stream`, {"
            "  method: 'DELETE', headers: { 'X-CSRFToken': 'a'.repeat(32) }"
            "}).then(({ status }) => status)"
        )
        assert status == 204
        second.until("ready")
    assert first.until("ready").parts[-1]["state"] == "done"
    wait_until(lambda: runs(site, group) == ["begun", "closed"], "its generator is not closed")
    reload(tab, site)
    assert Chat(tab, group, resume=True).until("ready").text == ""


def test_an_error_in_the_middle_is_told(tab: Tab, site: Site, group: str) -> None:
    chat = Chat(tab, group).ask("fail").until("error")
    assert chat.run("return chat.error.message") == "An error occurred."
    assert chat.parts == [{"type": "text", "text": "To begin with,", "state": "done"}]
    # It is not in the way of the next try.
    chat.run("chat.regenerate()")
    wait_until(lambda: len(runs(site, group)) == 4, "it is not tried again")
    chat.until("error")


def test_a_tool_of_the_page_is_called_and_the_answer_goes_on(
    tab: Tab, site: Site, group: str
) -> None:
    chat = Chat(tab, group).ask("add 1 2").until_text().until("ready")
    reasoning, tool, text = chat.parts
    assert (reasoning["type"], reasoning["text"]) == ("reasoning", "The page can add.")
    assert (tool["type"], tool["state"], tool["output"]) == ("tool-add", "output-available", 3)
    assert text == {"type": "text", "text": "It is 3.", "state": "done"}
    assert len(chat.run("return chat.messages")) == 2
    assert runs(site, group) == ["begun", "closed"] * 2


def test_an_answer_is_made_again(tab: Tab, site: Site, group: str) -> None:
    chat = Chat(tab, group).ask("count 3").until_text().until("ready")
    chat.run("chat.regenerate()")
    wait_until(lambda: len(runs(site, group)) == 4, "it is not made again")
    assert chat.until("ready").text == counted(3)
    assert len(chat.run("return chat.messages")) == 2
