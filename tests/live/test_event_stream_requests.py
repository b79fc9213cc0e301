"""Requests of one's own: what else than a plain GET an EventStream sends, and how often."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.live.browser import EventSource, Tab, wait_until
from tests.live.sites import RETRY, Site

SITE = {"ALLOWED_ORIGINS": ["*"]}

pytestmark = pytest.mark.in_turn


def follow(tab: Tab, url: str, options: str) -> EventSource:
    """Open an EventStream with options that are a script's."""
    tab.run(
        f"return followEventStream(arguments[0], arguments[0], {options})",
        url,
    )
    return EventSource(tab, url)


def sent(stream: EventSource, index: int = 0) -> dict[str, Any]:
    """Return what `/echo/` was sent."""
    wait_until(lambda: len(stream.messages) > index, "no answer")
    answer: dict[str, Any] = json.loads(stream.messages[index].data)
    return answer


def test_a_body_is_posted(tab: Tab) -> None:
    stream = follow(tab, "/echo/", "{ body: JSON.stringify({ question: 'why?' }) }")
    answer = sent(stream)
    assert (answer["method"], answer["body"]) == ("POST", '{"question":"why?"}')


def test_a_method_may_be_named(tab: Tab) -> None:
    stream = follow(tab, "/echo/", "{ method: 'put', body: 'text' }")
    answer = sent(stream)
    assert (answer["method"], answer["body"]) == ("PUT", "text")


def test_headers_are_sent_each_time(tab: Tab) -> None:
    url = "/echo/?header=Authorization"
    stream = follow(tab, url, "{ headers: { Authorization: 'Bearer a' } }")
    assert sent(stream)["Authorization"] == "Bearer a"
    assert sent(stream, 1)["Authorization"] == "Bearer a"
    stream.close()


def test_headers_are_asked_for_at_each_attempt(tab: Tab) -> None:
    tab.run("window.asked = 0")
    url = "/echo/?header=Authorization"
    stream = follow(tab, url, "{ headers: async () => ({ Authorization: `Bearer ${++asked}` }) }")
    assert sent(stream)["Authorization"] == "Bearer 1"
    answer = sent(stream, 1)
    assert (answer["method"], answer["id"], answer["Authorization"]) == ("GET", "7", "Bearer 2")
    stream.close()


def test_headers_that_cannot_be_had_now_are_asked_for_again(tab: Tab) -> None:
    tab.run(
        "window.asked = 0;"
        "window.token = async () => {"
        "  if (++asked === 1) throw new Error('no token');"
        "  return { Authorization: 'late' };"
        "};"
    )
    stream = follow(tab, "/echo/?header=Authorization", "{ headers: token, maxDelay: 10 }")
    assert sent(stream)["Authorization"] == "late"
    assert (
        tab.run("return said").count(
            f"EventStream {tab.run('return origin')}/echo/?header=Authorization: no token"
        )
        == 1
    )
    stream.close()


@pytest.mark.parametrize(
    ("credentials", "cookies"), [("omit", []), ("same-origin", ["here"]), ("include", ["here"])]
)
def test_credentials_are_those_of_fetch(tab: Tab, credentials: str, cookies: list[str]) -> None:
    tab.run("document.cookie = 'here=1; path=/'")
    stream = follow(tab, "/echo/?once", f"{{ credentials: '{credentials}' }}")
    assert sent(stream)["cookies"] == cookies
    stream.close()
    tab.run("document.cookie = 'here=; path=/; max-age=0'")


def test_the_csrf_token_is_that_of_the_cookie(tab: Tab) -> None:
    token = "a" * 32
    tab.run("document.cookie = `csrftoken=${arguments[0]}; path=/`", token)
    stream = follow(tab, "/protected/", "{ method: 'POST', csrf: true }")
    stream.wait_for("message", "POST")
    refused = follow(tab, "/protected/?without", "{ method: 'POST' }")
    refused.wait_for_state("closed")
    assert refused.messages[-1].reason == "403"
    tab.run("document.cookie = 'csrftoken=; path=/; max-age=0'")


def test_the_csrf_token_is_that_of_the_page(tab: Tab) -> None:
    tab.run(
        "const input = document.createElement('input');"
        "Object.assign(input, { name: 'csrfmiddlewaretoken', value: 'of the page' });"
        "document.body.append(input);"
    )
    url = "/echo/?header=X-CSRFToken"
    assert sent(follow(tab, url, "{ body: 'text', csrf: true }"))["X-CSRFToken"] == "of the page"


def test_no_other_origin_is_given_the_csrf_token(tab: Tab, site: Site) -> None:
    tab.run("document.cookie = 'csrftoken=secret; path=/'")
    tab.run(
        "window.headers = [];"
        "const fetchNow = window.fetch;"
        "window.fetch = (url, options) =>"
        "  (headers.push(options.headers.get('X-CSRFToken')), fetchNow(url, options));"
    )
    there = f"{site.other_origin}/echo/?header=X-CSRFToken&other"
    other = follow(tab, there, "{ csrf: true }")
    wait_until(lambda: tab.run("return headers.length"), "it does not ask")
    no_further = f"{there}&redirected"
    redirect = f"/foreign/?{urlencode({'to': no_further})}"
    redirected = follow(tab, redirect, "{ csrf: true }")
    wait_until(lambda: len(site.statuses(redirect)) > 1, "it does not come back")
    other.close()
    redirected.close()
    assert tab.run("return headers[0]") is None
    assert site.statuses(no_further[len(site.other_origin) :]) == []
    tab.run("document.cookie = 'csrftoken=; path=/; max-age=0'")


# What is not asked for twice


def test_what_was_posted_goes_on_by_get_where_its_answer_says(tab: Tab, site: Site) -> None:
    url = "/echo/?location=/echo/%3Frest"
    stream = follow(tab, url, "{ body: 'text' }")
    assert sent(stream)["method"] == "POST"
    answer = sent(stream, 1)
    assert (answer["method"], answer["body"], answer["id"]) == ("GET", "", "7")
    assert site.statuses(url) == [200]
    assert tab.run("return sources[arguments[0]].source.url", url) == f"{site.origin}{url}"
    stream.close()


@pytest.mark.parametrize("location", ["", "https://a.example/", "//a.example/", "data:,"])
def test_what_was_posted_is_not_posted_twice(tab: Tab, site: Site, location: str) -> None:
    url = f"/echo/?{urlencode({'location': location})}"
    stream = follow(tab, url, "{ body: 'text' }")
    stream.assert_stays_closed(RETRY)
    assert [(message.type, message.reason) for message in stream.messages] == [
        ("message", None),
        ("close", "not posted twice"),
    ]
    assert site.statuses(url) == [200]


def test_what_was_refused_is_not_posted_twice(tab: Tab, site: Site) -> None:
    url = "/protected/?status"
    tab.run("return define()")
    with site.network.without_server():
        stream = follow(tab, url, "{ body: 'text', maxDelay: 10 }")
        stream.wait_for_state("closed")
    assert [message.reason for message in stream.messages] == ["not posted twice"]
    assert site.statuses(url) == []


def test_what_was_not_answered_is_posted_until_it_is(tab: Tab, site: Site) -> None:
    tab.run("return define()")
    with site.network.cut():
        stream = follow(tab, "/echo/", "{ body: 'text', maxDelay: 10 }")
        wait_until(lambda: stream.errors, "it is not lost")
    assert sent(stream)["body"] == "text"


@pytest.mark.parametrize("location", [False, True])
def test_a_page_that_is_back_posts_nothing_twice(tab: Tab, site: Site, location: bool) -> None:
    url = f"/echo/?{urlencode({'location': '/echo/?of-page' * location})}&back"
    stream = follow(tab, url, "{ body: 'text', pauseWhenHidden: true }")
    sent(stream)
    tab.run("window.dispatchEvent(new Event('pagehide'))")
    tab.run("window.dispatchEvent(new Event('pageshow'))")
    if location:
        assert sent(stream, 1)["method"] == "GET"
        stream.close()
    else:
        stream.wait_for_state("closed")
        assert stream.messages[-1].reason == "not posted twice"
    assert site.statuses(url) == [200]


def test_each_request_of_ones_own_is_another_one(tab: Tab, site: Site) -> None:
    """Where plain ones of the same page, or of all tabs, share a connection."""
    url = "/echo/?twice"
    tab.run(
        "return define().then(() => {"
        "  for (const body of ['one', 'two']) {"
        "    const stream = new EventStream(arguments[0], { body, shared: true });"
        "    stream.onmessage = ({ data }) => said.push(JSON.parse(data).body);"
        "  }"
        "})",
        url,
    )
    wait_until(
        lambda: {"one", "two"} <= set(tab.run("return said")), lambda: tab.run("return said")
    )
    assert site.statuses(url) == [200, 200]


def test_no_other_origin_says_where_in_this_one_it_goes_on(tab: Tab, site: Site) -> None:
    """Nor where a stop is sent to, with the page's token."""
    there = f"{site.origin}/echo/?chosen-elsewhere"
    elsewhere = f"{site.other_origin}/posted-elsewhere/?{urlencode({'location': there})}"
    url = f"/foreign/?{urlencode({'to': elsewhere})}"
    stream = follow(tab, url, "{ method: 'POST' }")
    # A redirect of this kind makes it a GET.
    stream.wait_for("message", "GET")
    stream.wait_for_state("closed")
    assert stream.messages[-1].reason == "not posted twice"
    assert site.statuses("/echo/?chosen-elsewhere") == []


def test_another_origin_may_say_where_it_goes_on(tab: Tab, site: Site) -> None:
    """A page sees few headers of another origin's answer: those that it is allowed to."""
    # Answered by the library, as a preflight is.
    url = f"{site.other_origin}/posted-elsewhere/"
    stream = follow(tab, url, "{ body: 'text' }")
    stream.wait_for("message", "POST")
    stream.wait_for("message", "GET")
    stream.close()
