"""Each page of the demo does what it says, in a real browser."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from demo_project.answers import ANSWERS
from demo_project.markov import write
from demo_project.tabs import BURST
from tests.live.browser import Browser
from tests.live.demo import Demo, Page, run

# It stands for another browser: it has cookies, and so a session, of its own.
ANOTHER = "another.localhost"
NUMBERS = [str(number) for number in range(1, BURST + 1)]


@pytest.fixture(scope="module")
def demo(directory: Path) -> Iterator[Demo]:
    with run(directory, retry=0.2) as demo:
        yield demo


# The library is tested in each browser; the pages of the demo are no more than users of it.
pytestmark = pytest.mark.in_turn


def test_a_headline_from_a_second_terminal_is_on_the_front_page(
    browser: Browser, demo: Demo
) -> None:
    with demo.open(browser, "/") as page:
        page.wait_for_element("event-stream[state=open]")
        demo.manage("sse_push", "news", '{"title": "<b>hi</b>"}', "--event", "headline")
        page.wait_for_texts("#headlines li", "<b>hi</b>")


def test_a_headline_from_the_page_is_on_all_pages(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/headlines/") as page, demo.open(browser, "/headlines/") as other:
        for each in (page, other):
            each.wait_for_element("event-stream[state=open]")
        page.fill("[name=title]", "from the page")
        page.click("form.stay button")
        for each in (page, other):
            each.wait_for_texts("#headlines li:first-child", "from the page")


def test_the_metrics_are_drawn(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/metrics/") as page:
        page.wait_for_texts("#metrics .state", "open")
        samples = [
            {"time": time, "cpu": cpu, "memory_used": 2e9, "memory_total": 8e9}
            | {"received": 1500, "sent": 20}
            for time, cpu in ((1000, 50), (1030, 42))
        ]
        lines = "".join(f"{json.dumps(sample)}\n" for sample in samples)
        demo.manage("sse_push", "metrics", "-", "--event", "sample", input=lines)
        page.wait_for_texts(".chart strong", "42 %", "2.0 GB", "1.5 kB/s", "20 B/s")
        # The older sample is half a minute to the left; both are where their values are.
        line = page.run("return document.querySelector('.chart.cpu .line').getAttribute('d')")
        assert line.startswith("M30.00 50.00L60.00 58.00")


def test_a_job_shows_its_progress_and_can_be_started_again(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/job/") as page:
        page.run("document.querySelector('[name=steps]').value = 3")
        for _ in range(2):
            page.click("#job button")
            page.wait_for_texts("#step", "Done.")
            assert page.texts("#job-state") == ["closed"]
            assert page.run("return document.querySelector('#progress').value") == 3
    assert demo.requests.statuses("/progress/?steps=3&delay=0.2") == [200, 200]


def test_a_job_that_is_refused_says_so(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/job/") as page:
        page.run("document.querySelector('#job').noValidate = true")
        page.run("document.querySelector('[name=steps]').value = 0")
        page.click("#job button")
        page.wait_for_texts("#step", "The server refused the job: 400.")


def test_two_browsers_chat_in_a_room(browser: Browser, demo: Demo) -> None:
    def enter(page: Page, name: str) -> None:
        page.fill("[name=name]", name)
        page.click("form button")
        page.wait_for_element("[name=text]")
        page.wait_for_element("event-stream[state=open]")

    def say(page: Page, text: str) -> None:
        page.fill("[name=text]", text)
        page.click("form.stay button")

    with (
        demo.open(browser, "/chat/") as ada,
        demo.open(browser, "/chat/", ANOTHER) as grace,
        demo.open(browser, "/chat/library/", ANOTHER) as elsewhere,
    ):
        enter(ada, "Ada")
        enter(grace, "Grace")
        said = ["Ada Hello, <b>you</b>!", "Grace Hello, Ada."]
        say(ada, "Hello, <b>you</b>!")
        grace.wait_for_texts("#messages li", *said[:1])
        say(grace, "Hello, Ada.")
        for page in (ada, grace):
            page.wait_for_texts("#messages li", *said)
        # What one has said oneself looks different.
        sides = (
            "return [...document.querySelectorAll('#messages li')]"
            ".map((message) => getComputedStyle(message).alignSelf)"
        )
        assert ada.run(sides) == ["end", "start"]
        assert grace.run(sides) == ["start", "end"]
        # Another room is another group.
        elsewhere.wait_for_element("event-stream[state=open]")
        assert elsewhere.texts("#messages li") == []
        # Who comes later reads what was said.
        with demo.open(browser, "/chat/lobby/") as later:
            later.wait_for_texts("#messages li", *said)


def test_a_text_appears_word_by_word_and_ends(browser: Browser, demo: Demo) -> None:
    _, text = ANSWERS["websockets"]
    with demo.open(browser, "/text/websockets/") as page:
        page.wait_for_element("event-stream:is([state=open], [state=closed])")
        # Once more from the beginning, which a script in the page cannot miss.
        page.run(
            "window.lengths = [];"
            "const answer = document.querySelector('#answer');"
            "const stream = document.querySelector('event-stream');"
            "stream.replaceWith(stream.cloneNode());"
            "answer.replaceChildren();"
            "new MutationObserver(() => lengths.push(answer.textContent.length))"
            ".observe(answer, { childList: true })"
        )
        page.wait_for_element("event-stream[state=closed]")
        assert page.texts("#answer") == [text]
        assert len(page.run("return lengths")) > 10
    assert demo.requests.statuses("/text/websockets/events/") == [200, 200]


def ask(page: Page, question: str, words: int) -> str:
    """Ask for an answer of so many words; return the path of its page, once there is some of it."""
    page.run("document.querySelector('[name=words]').value = arguments[0]", words)
    page.run("document.querySelector('[name=question]').value = arguments[0]", question)
    page.click("#question .primary")
    page.wait_for(lambda: words_of(page))
    return str(page.run("return location.pathname"))


def words_of(page: Page) -> list[str]:
    return page.texts("#answer")[0].split()


def test_an_answer_survives_a_reload_and_is_written_once(browser: Browser, demo: Demo) -> None:
    question = "What is <b>this</b>?"
    with demo.open(browser, "/lasting-answer/") as page:
        path = ask(page, question, 200)
        page.wait_for(lambda: len(words_of(page)) > 10)
        assert len(words_of(page)) < 200
        [begun] = page.texts("#asked")
        assert begun.startswith(f"{question} Begun once, at ")
        page.reload()
        page.wait_for_texts("#ending", "Complete: the model has said all.")
        answer = " ".join(write(f"{question} {path.split('/')[-2]}", 200))
        # Who comes later, in another browser, gets the same.
        with demo.open(browser, path, ANOTHER) as other:
            other.wait_for_texts("#ending", "Complete: the model has said all.")
            for each in (page, other):
                assert each.texts("#answer") == [answer]
                assert each.texts("#asked") == [begun]


def test_an_answer_is_stopped_from_another_browser(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/lasting-answer/") as page:
        path = ask(page, "Why?", 2000)
        with demo.open(browser, path, ANOTHER) as other:
            other.wait_for(lambda: len(words_of(other)) > 10)
            other.click("#stop")
            for each in (page, other):
                each.wait_for_texts("#ending", "Stopped, by whoever has pressed the button.")
                assert each.texts("#answer-state") == ["closed"]
        assert 10 < len(words_of(page)) < 2000
        # What was written is kept.
        written = words_of(page)
        page.reload()
        page.wait_for_texts("#ending", "Stopped, by whoever has pressed the button.")
        assert words_of(page) == written


def test_a_link_to_no_answer_says_so(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, f"/lasting-answer/{uuid4()}/") as page:
        page.wait_for_texts("#ending", "Nobody has asked for this answer.")
        # It can be asked for another one.
        ask(page, "Really?", 1)
        page.wait_for_texts("#ending", "Complete: the model has said all.")


def test_an_answer_is_interrupted_when_its_server_is_killed(
    browser: Browser, tmp_path: Path
) -> None:
    with ExitStack() as tab:
        with run(tmp_path, retry=0.2, PRODUCER_TTL=2) as demo:
            page = tab.enter_context(demo.open(browser, "/lasting-answer/"))
            ask(page, "Why?", 2000)
            page.wait_for(lambda: len(words_of(page)) > 10)
            demo.server.kill()
        with run(tmp_path, retry=0.2, port=demo.server.port, PRODUCER_TTL=2):
            page.wait_for_texts("#ending", "Interrupted: the process of the model is gone.")
            assert 10 < len(words_of(page)) < 2000


def start_job(page: Page, steps: int, *, fail: bool = False) -> None:
    page.run("document.querySelector('[name=steps]').value = arguments[0]", steps)
    page.run("document.querySelector('[name=delay]').value = 0.05")
    if fail:
        page.click("[name=fail]")
    page.click("#begin")


def value(page: Page) -> int:
    return int(page.run("return document.querySelector('#progress').value"))


def test_a_long_job_shows_its_progress_also_after_a_reload(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/long-job/") as page:
        start_job(page, 120)
        page.wait_for(lambda: 0 < value(page) < 120)
        page.reload()
        page.wait_for_texts("#step", "Done.")
        assert value(page) == 120


def test_a_long_job_is_stopped_from_another_browser_and_retried(
    browser: Browser, demo: Demo
) -> None:
    with demo.open(browser, "/long-job/") as page:
        start_job(page, 1000)
        page.wait_for(lambda: value(page))
        stopped = page.run("return location.pathname")
        with demo.open(browser, stopped, ANOTHER) as other:
            other.wait_for(lambda: value(other))
            other.click("#stop")
            for each in (page, other):
                each.wait_for_texts("#step", "Stopped.")
        page.run("document.querySelector('[name=steps]').value = 3")
        page.click("#retry")
        page.wait_for_texts("#step", "Done.")
        assert page.run("return location.pathname") != stopped


def test_a_long_job_fails_and_its_retry_does_not(browser: Browser, demo: Demo) -> None:
    with demo.open(browser, "/long-job/") as page:
        start_job(page, 6, fail=True)
        page.wait_for_texts("#step", "The job has failed.")
        assert value(page) == 3
        failed = page.run("return location.pathname")
        page.click("#retry")
        page.wait_for_texts("#step", "Done.")
        assert value(page) == 6
        assert page.run("return location.pathname") != failed


def test_cancelling_a_group_stops_both_clients_and_reopening_lets_them_go_on(
    browser: Browser, demo: Demo
) -> None:
    def lines(client: str) -> list[list[str]]:
        lines: list[list[str]] = page.run(
            "return [...document.querySelectorAll('#log li')]"
            ".map((line) => [...line.children].map((cell) => cell.textContent))"
            ".filter(([client]) => client === arguments[0]).map(([, ...rest]) => rest)",
            client,
        )
        return lines

    def click(url: str) -> None:
        """Press a button, and wait until it has been answered."""
        before = demo.requests.statuses(url)
        page.click(f"[formaction='{url}']")
        page.wait_for(lambda: len(demo.requests.statuses(url)) > len(before))
        page.wait_for(lambda: None not in demo.requests.statuses(url))

    close = ["close", '{"reason":"cancelled on the page"}']
    stopped = ["error", "readyState CLOSED"]
    headline = ["headline", '{"title":"Hello"}']
    with demo.open(browser, "/last-word/") as page:
        page.wait_for_texts("#group .state", "open", "open")
        click("/news/cancel/")
        page.wait_for_texts("#group .state", "closed", "closed")
        assert lines("EventStream") == [["open", "readyState OPEN"], close]
        assert lines("EventSource") == [
            ["open", "readyState OPEN"],
            close,
            ["error", "readyState CONNECTING"],
            stopped,
        ]

        click("/news/publish/")
        page.wait_for(lambda: "is cancelled" in page.texts("#group form output")[0])
        page.click("#connect")
        page.wait_for(lambda: lines("EventStream")[-1] == ["close", '{"reason":"204"}'])
        page.wait_for(lambda: lines("EventSource")[-2:] == [stopped, stopped])

        click("/news/reopen/")
        click("/news/publish/")
        page.click("#connect")
        # What came while they were away is there, once.
        page.wait_for(lambda: headline in lines("EventStream"))
        page.wait_for(lambda: headline in lines("EventSource"))
        click("/news/publish/")
        page.wait_for(lambda: lines("EventStream").count(headline) == 2)
        page.wait_for(lambda: lines("EventSource").count(headline) == 2)


def test_who_is_kicked_is_out_and_nobody_else(browser: Browser, demo: Demo) -> None:
    def login(page: Page, user: str) -> None:
        page.click(f"form[action='/last-word/login/'] [value={user}]")
        page.wait_for_element("#user event-stream[state=open]")

    with (
        demo.open(browser, "/last-word/") as ada,
        demo.open(browser, "/last-word/", ANOTHER) as grace,
    ):
        login(ada, "ada")
        login(grace, "grace")
        grace.click("form[action='/last-word/kick/'] [value=ada]")
        ada.wait_for_element("#user event-stream[state=closed]")
        grace.wait_for(lambda: "Ada was kicked" in grace.texts("#members li"))
        assert (
            grace.run("return document.querySelector('#user event-stream').stream.readyState") == 1
        )

        ada.reload()
        ada.wait_for_element("#user event-stream[state=closed]")
        login(ada, "ada")


def test_twenty_tabs_hold_one_stream(browser: Browser, demo: Demo) -> None:
    def numbers() -> list[list[str]]:
        numbers: list[list[str]] = page.run(
            "return [...document.querySelectorAll('iframe')].map((tab) =>"
            " [...tab.contentDocument.querySelectorAll('#numbers li')].map((li) => li.textContent))"
        )
        return numbers

    def all_are_open() -> bool:
        states = page.run(
            "return [...document.querySelectorAll('iframe')].map((tab) =>"
            " tab.contentDocument.querySelector('event-stream')?.getAttribute('state'))"
        )
        return bool(states == ["open"] * 20)

    with demo.open(browser, "/tabs/") as page:
        page.wait_for_texts("#streams", "1")
        page.click("[name=open]")
        page.wait_for(all_are_open)
        page.wait_for_texts("#streams", "1")
        page.click("form.stay button")
        page.wait_for(lambda: numbers() == [NUMBERS] * 20)
        # The first one may be the one that reads for all of them.
        page.run("document.querySelector('iframe').remove()")
        page.click("form.stay button")
        page.wait_for(lambda: numbers() == [NUMBERS * 2] * 19)
        page.wait_for_texts("#streams", "1")
