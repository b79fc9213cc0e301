"""The library's client in a browser: EventSource's interface, and what EventSource does not do."""

import json
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from django_sse.groups.position import format_position
from tests.live.browser import STATES, Browser, EventSource, Tab, wait_until
from tests.live.sites import RETRY, Site

OVER = '{"reason":"over"}'
# What `/foreign/` sends.
FOREIGN = "<b>foreign</b>"

# A script that makes streams, and resolves what `run` returns.
SCRIPT = """
    return import("/static/django_sse/event-stream.js").then(({ EventStream }) => {
      const make = (...all) => new EventStream(...all);
      return new Promise((resolve) => {
"""
END = "}) })"


SITE = {"HEARTBEAT": 0.2}

pytestmark = pytest.mark.in_turn


def opened(tab: Tab, url: str, **options: object) -> EventSource:
    stream = tab.follow_event_stream(url, **options)
    stream.wait_for_state("open")
    return stream


def reasons(stream: EventSource) -> list[str]:
    """Return why the connection was lost, each time."""
    return list(stream.tab.run("return sources[arguments[0]].reasons", stream.url))


def said(tab: Tab) -> list[str]:
    """Return what the library has said on the console."""
    return list(tab.run("return said"))


def test_it_has_the_interface_of_event_source(tab: Tab, site: Site, group: str) -> None:
    opened(tab, f"/events/{group}/")
    (name,) = tab.run("return Object.keys(sources)")
    missing = tab.run(
        "const stream = sources[arguments[0]].source;"
        "const members = Object.getOwnPropertyNames(EventSource.prototype);"
        "return members.filter((member) => !(member in stream))",
        name,
    )
    assert missing == []
    assert (
        tab.run("return sources[arguments[0]].source.url", name) == f"{site.origin}/events/{group}/"
    )


def test_events_come_with_their_names_texts_and_ids(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    for text in ("one", "two\nlines", "\n", "", "ünïcödé \u2028 🎉"):
        site.publish(group, text)
        message = stream.wait_for("message", text)
        assert message.last_event_id
    assert len({message.last_event_id for message in stream.messages}) == 5


def test_an_address_that_is_none_is_refused(tab: Tab) -> None:
    error = tab.run(
        "return import('/static/django_sse/event-stream.js')"
        "  .then(({ EventStream }) => new EventStream('http://'))"
        "  .then(() => null, (error) => error.name)"
    )
    assert error == "TypeError"


# Ends


def test_close_ends_it_and_says_why(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    site.publish(group, "last")
    site.cancel(group, "over")
    stream.assert_stays_closed(RETRY)
    assert stream.received == [("message", "last"), ("close", OVER)]
    assert stream.messages[-1].reason == "over"
    # Unlike EventSource it does not have to come back to be told.
    assert site.statuses(f"/events/{group}/") == [200]
    assert stream.errors == []


def test_a_204_ends_it(tab: Tab, site: Site, group: str) -> None:
    site.cancel(group, "over")
    stream = tab.follow_event_stream(f"/events/{group}/")
    stream.assert_stays_closed(RETRY)
    assert [(message.type, message.reason) for message in stream.messages] == [("close", "204")]
    assert site.statuses(f"/events/{group}/") == [204]


@pytest.mark.parametrize(("path", "status"), [("/members/{}/", 403), ("/nowhere/{}/", 404)])
def test_what_is_final_ends_it(tab: Tab, site: Site, group: str, path: str, status: int) -> None:
    stream = tab.follow_event_stream(path.format(group))
    stream.assert_stays_closed(RETRY)
    assert [message.reason for message in stream.messages] == [str(status)]
    assert site.statuses(path.format(group)) == [status]


def test_after_its_own_close_nothing_comes(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    stream.close()
    assert stream.state == "closed"
    site.publish(group, "unseen")
    wait_until(lambda: site.open_streams() == 0, "the stream is still open")
    tab.outlast(RETRY)
    assert stream.received == []
    assert site.statuses(f"/events/{group}/") == [200]


# Coming back


@pytest.mark.parametrize("path", ["events", "moved"], ids=["by itself", "without the query"])
def test_it_goes_on_where_it_was(tab: Tab, site: Site, group: str, path: str) -> None:
    """Also behind a redirect that drops the query."""
    stream = opened(tab, f"/{path}/{group}/")
    site.publish(group, "seen")
    stream.wait_for("message", "seen")
    with site.network.cut():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")
    assert stream.state == "open"
    assert stream.received == [("message", "seen"), ("message", "missed")]


def test_a_client_that_has_received_nothing_goes_on_too(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    with site.network.cut():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")


def test_it_comes_back_after_a_bad_gateway(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", maxDelay=300)
    wait_until(lambda: stream.last_event_id, "no position")
    refused = len(site.network.refused)
    with site.network.without_server():
        wait_until(lambda: len(site.network.refused) >= refused + 5, "it does not come back")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")
    waits = [after - before for before, after in pairwise(site.network.refused[refused:])]
    assert waits
    assert all(wait >= RETRY for wait in waits)


def test_it_gives_up_if_told_to(browser: Browser, site: Site, group: str) -> None:
    with Tab.open(browser, site.origin) as tab:
        stream = opened(tab, f"/events/{group}/", maxRetries=2)
        refused = len(site.network.refused)
        with site.network.without_server():
            stream.wait_for_state("closed")
        assert [message.reason for message in stream.messages] == ["max retries"]
        assert len(site.network.refused) - refused == 2


def test_a_server_that_only_says_when_to_come_back_is_given_up(tab: Tab) -> None:
    """As one does that has too many streams, or no store."""
    stream = tab.follow_event_stream("/ends/?retry=10", maxRetries=3)
    stream.wait_for_state("closed")
    assert [message.reason for message in stream.messages] == ["max retries"]
    assert stream.errors == ["connecting"] * 3


def test_told_to_come_back_at_once_it_comes_later_and_later(tab: Tab) -> None:
    stream = tab.follow_event_stream("/ends/?retry=0", maxRetries=10)
    stream.wait_for_state("closed")
    times = stream.error_times
    assert times[-1] - times[0] > 0.25


def test_a_time_that_is_too_long_for_a_timer_is_not_none(tab: Tab, site: Site) -> None:
    url = f"/ends/?retry={2**31}"
    tab.follow_event_stream(url, silence=2**31)
    wait_until(lambda: site.statuses(url) == [200], "it does not come")
    tab.outlast(RETRY)
    assert site.statuses(url) == [200]


def test_a_silent_connection_is_given_up(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", silence=3000)
    wait_until(lambda: stream.last_event_id, "no position")
    with site.network.silent():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("message", "missed")


def test_heartbeats_are_no_silence(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", silence=8000)
    # Longer than it may be silent.
    tab.run("return new Promise((resolve) => setTimeout(resolve, 8500))")
    assert stream.errors == []


def test_while_its_page_is_hidden_it_may_pause(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", pauseWhenHidden=True)
    wait_until(lambda: stream.last_event_id, "no position")
    tab.run(
        "document.addEventListener('visibilitychange',"
        "  () => (window.whenHidden ??= sources[arguments[0]].source.readyState))",
        stream.url,
    )
    with tab.hidden():
        wait_until(lambda: site.open_streams() == 0, "the stream is still open")
        site.publish(group, "while hidden")
    stream.wait_for("message", "while hidden")
    # Asked when it was hidden: a tab that is asked by this test is shown.
    assert STATES[tab.run("return whenHidden")] == "connecting"
    assert stream.errors == []


@pytest.mark.chromium("freezing takes the protocol of its debugger")
def test_a_page_that_is_thawed_goes_on_at_once(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    with tab.frozen():
        wait_until(lambda: site.open_streams() == 0, "the stream is still open")
        site.publish(group, "while frozen")
    stream.wait_for("message", "while frozen")
    assert stream.errors == []


# Redirects


def redirected(origin: str, to: str) -> str:
    """Return the path of a redirect."""
    return f"{origin}/foreign/?{urlencode({'to': to})}"


def test_a_redirect_within_its_origin_is_followed(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}", withCredentials=True)
    site.publish(group, "one")
    stream.wait_for("message", "one")
    assert site.statuses(f"/events/{group}") == [301]


def test_a_redirect_within_another_origin_is_followed(tab: Tab, site: Site) -> None:
    stream = tab.follow_event_stream(redirected(site.other_origin, "/foreign/"))
    stream.wait_for("message", FOREIGN)


@pytest.mark.parametrize("options", [{"withCredentials": True}, {"origins": ["https://a.example"]}])
def test_a_redirect_from_the_pages_origin_to_another_one_is_not_followed_with_cookies_or_mistrust(
    tab: Tab, site: Site, options: dict[str, Any]
) -> None:
    there = f"/foreign/?from=own&{next(iter(options))}"
    redirect = redirected("", f"{site.other_origin}{there}")
    stream = tab.follow_event_stream(redirect, **options)
    wait_until(lambda: stream.errors, "it is followed")
    assert site.statuses(there) == []
    assert stream.received == []


def test_a_redirect_from_another_origin_is_not_followed_with_cookies(tab: Tab, site: Site) -> None:
    there = "/foreign/?from=other&cookies"
    redirect = redirected(site.other_origin, f"{site.origin_of('localhost')}{there}")
    stream = tab.follow_event_stream(redirect, withCredentials=True)
    wait_until(lambda: stream.errors, "it is followed")
    assert site.statuses(there) == []
    assert stream.received == []


@pytest.mark.parametrize("from_other", [True, False])
def test_a_redirect_to_another_origin_is_followed_without_cookies(
    tab: Tab, site: Site, from_other: bool
) -> None:
    there = f"{site.origin_of('localhost')}/foreign/"
    stream = tab.follow_event_stream(redirected(site.other_origin if from_other else "", there))
    stream.wait_for("message", FOREIGN)


def test_what_an_origin_answers_that_is_not_listed_is_not_read(tab: Tab, site: Site) -> None:
    redirect = redirected(site.other_origin, f"{site.origin_of('localhost')}/foreign/?listed")
    stream = tab.follow_event_stream(redirect, origins=[site.other_origin])
    wait_until(lambda: stream.errors, "it is followed")
    assert stream.received == []


# What it makes of the events


def test_json_is_parsed_if_asked_for(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/", json=True)
    for text in ('{"a": [1, null]}', "null", "no JSON"):
        site.publish(group, text)
    stream.wait_for("message", "no JSON")
    assert stream.received == [
        ("message", {"a": [1, None]}),
        ("message", None),
        ("message", "no JSON"),
    ]


def test_lost_events_are_a_reset(tab: Tab, site: Site, group: str) -> None:
    site.publish(group, "one")
    stream = tab.follow_event_stream(f"/events/{group}/", lastEventId=format_position({group: 1}))
    stream.wait_for("reset", "{}")
    site.publish(group, "two")
    stream.wait_for("message", "two")


# Where it was, behind redirects


@pytest.mark.parametrize("query", [{"lastEventId": ""}, {}])
def test_a_page_that_begins_behind_one_misses_nothing(
    tab: Tab, site: Site, group: str, query: dict[str, str]
) -> None:
    site.publish(group, "before")
    here = opened(tab, f"/events/{group}/")
    wait_until(lambda: here.last_event_id, "no position")
    position = here.last_event_id
    site.publish(group, "meanwhile")
    if query:
        stream = tab.follow_event_stream(f"/moved/{group}/?lastEventId={position}")
    else:
        stream = tab.follow_event_stream(f"/moved/{group}/", lastEventId=position)
    stream.wait_for("message", "meanwhile")
    assert stream.received == [("message", "meanwhile")]


@pytest.mark.parametrize("id", ["ünï 🎉 %&+#", 5])
def test_an_id_of_any_kind_goes_along(tab: Tab, id: str | int) -> None:
    stream = tab.follow_event_stream("/echo/", lastEventId=id)
    wait_until(lambda: stream.messages, "no answer")
    assert json.loads(stream.messages[0].data)["id"] == str(id)


def test_a_redirect_to_another_origin_is_followed_by_who_comes_back(tab: Tab, site: Site) -> None:
    """Where a header of its own would need a permission that nobody gives."""
    there = f"{site.other_origin}/foreign/?id=5"
    redirect = redirected("", there)
    stream = tab.follow_event_stream(redirect)
    wait_until(lambda: len(stream.messages) > 2, "it does not come back")
    assert stream.last_event_id == "5"
    # Not one that was refused, and tried again without.
    assert set(site.statuses("/foreign/?id=5")) == {200}
    assert stream.errors
    assert not any("no answer" in reason for reason in reasons(stream))


@pytest.mark.parametrize(
    ("path", "first"),
    [("forgetful", []), ("forgetful-with-state", [("message", "the state of now")])],
)
def test_a_server_that_has_lost_where_it_was_is_a_reset(
    tab: Tab, site: Site, group: str, path: str, first: list[tuple[str, str]]
) -> None:
    stream = opened(tab, f"/{path}/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    assert stream.received == first
    with site.network.cut():
        stream.wait_for_state("connecting")
        site.publish(group, "missed")
    stream.wait_for("reset", "{}")
    site.publish(group, "later")
    stream.wait_for("message", "later")
    # What is read anew at the reset is not lost with it.
    assert stream.received == [*first, ("reset", "{}"), *first, ("message", "later")]


def test_who_has_missed_nothing_is_not_told_so(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/forgetful/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    with site.network.cut():
        stream.wait_for_state("connecting")
    stream.wait_for_state("open")
    site.publish(group, "one")
    stream.wait_for("message", "one")
    assert stream.received == [("message", "one")]


A, B, C = "aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"
SEEN = f"{A}.5~{B}.7~signature-a"


@pytest.mark.parametrize(
    ("then", "received"),
    [
        # One group more, which brings its state, and one less.
        (f"data: state\n\nid: {B}.7~{C}.9~sig\n\n", ["message"]),
        # Of another key.
        (f"id: {C}.9~sig\n\n", []),
        (f"id: {A}.5~{B}.8~sig\n\ndata: x\n\n", ["reset", "message"]),
        (f"data: state\n\nid: {A}.6~sig\n\n", ["reset", "message"]),
        # It is said already.
        (f"event: reset\ndata: {{}}\n\nid: {A}.9~sig\n\n", ["reset"]),
        (f'id: {A}.9~sig\nevent: close\ndata: {{"reason": "over"}}\n\n', ["close"]),
        # Events, and not where it goes on from.
        (f"id: {A}.6~{B}.7~sig\ndata: x\n\n", ["message"]),
        # No id of ours says how far it is, or none at all.
        ("id: 1\ndata: x\n\n", ["message"]),
        ("data: x\n\n", ["message"]),
    ],
)
def test_a_reset_is_said_where_a_group_goes_on_from_elsewhere(
    tab: Tab, then: str, received: list[str]
) -> None:
    then += "event: progress\ndata: end\n\n"
    url = f"/says/?{urlencode({'then': then})}"
    stream = tab.follow_event_stream(url, lastEventId=SEEN, maxRetries=0)
    stream.wait_for_state("closed")
    types = [message.type for message in stream.messages]
    if received[-1:] != ["close"]:
        received = [*received, "progress", "close"]
    assert types == received


def test_a_server_that_says_no_more_where_it_is_is_read_all_the_same(tab: Tab) -> None:
    # What it sends has not ended, and no id follows.
    tab.run(
        "const text = new TextEncoder().encode('data: one\\n\\n');"
        "const body = new ReadableStream({ start: (controller) => controller.enqueue(text) });"
        "const headers = { 'Content-Type': 'text/event-stream' };"
        "window.fetch = async () => new Response(body, { headers });"
    )
    stream = tab.follow_event_stream("/events/none/", lastEventId=SEEN)
    stream.wait_for("message", "one")
    assert stream.received == [("message", "one")]


# Addresses


@pytest.mark.parametrize(
    "query",
    [
        "signature=a%2Fb+c%20d~e*f!(g)&name=%E4%F6&&empty=&flag",
        "x=1&lastEventIds=2",
        "?=%zz",
    ],
)
def test_a_query_stays_as_it_is(tab: Tab, site: Site, group: str, query: str) -> None:
    url = f"/says/?{query}&of={group}&text=retry:10%0Aid:5%0A%0A"
    stream = tab.follow_event_stream(url)
    wait_until(lambda: len(site.statuses(url)) > 2, "it does not come back as it came")
    assert {request.last_event_id for request in site.requests.of(url)[1:]} == {"5"}
    stream.close()


def test_a_position_in_the_query_is_replaced_where_it_is(tab: Tab) -> None:
    text = quote("retry: 10\nid: a b&c\ndata: x\n\n")
    urls = tab.run(
        "const asked = [];"
        "const fetchNow = window.fetch;"
        "window.fetch = (url, options) => (asked.push(`${url}`), fetchNow(url, options));"
        "return followEventStream('name', arguments[0], {}).then(() => new Promise((resolve) => {"
        "  setInterval(() => asked.length > 1 && resolve(asked), 20);"
        "}))",
        f"/says/?a=%E4&lastEventId=1&text={text}#there",
    )
    assert urls[0].endswith(f"/says/?a=%E4&lastEventId=1&text={text}#there")
    assert urls[1].endswith(f"/says/?a=%E4&lastEventId=a+b%26c&text={text}#there")


def test_a_page_that_was_opened_with_a_password_connects(
    browser: Browser, site: Site, group: str
) -> None:
    origin = site.origin.replace("://", "://user:password@")
    with Tab.open(browser, origin) as tab:
        stream = opened(tab, f"/events/{group}/")
        assert tab.run("return sources[arguments[0]].source.url", stream.url) == (
            f"{site.origin}/events/{group}/"
        )


# What never works


@pytest.mark.parametrize("type", ["text/html; charset=utf-8", "application/json"])
def test_an_answer_of_another_type_ends_it_and_is_said(
    tab: Tab, site: Site, type: str, group: str
) -> None:
    url = f"/says/?{urlencode({'type': type, 'text': group})}"
    stream = tab.follow_event_stream(url)
    stream.assert_stays_closed(RETRY)
    [message] = stream.messages
    assert message.type == "close"
    assert message.reason == f"no event stream, but {type}"
    assert site.statuses(url) == [200]
    assert said(tab) == [f"EventStream {site.origin}{url}: {message.reason}"]


@pytest.mark.parametrize(
    "url", ["mailto:a@b.example", "about:blank", "javascript:0", "data:text/event-stream,data:x"]
)
def test_an_address_that_is_not_of_http_ends_it_and_is_said(tab: Tab, url: str) -> None:
    stream = tab.follow_event_stream(url)
    stream.assert_stays_closed(RETRY)
    [message] = stream.messages
    assert (message.type, message.reason) == ("close", "not http(s)")
    assert said(tab) == [f"EventStream {url}: not http(s)"]


def test_what_another_origin_does_not_allow_is_tried_less_and_less_and_said_once(
    tab: Tab, site: Site, group: str
) -> None:
    url = f"{site.other_origin}/says/?of={group}"
    stream = tab.follow_event_stream(url, maxDelay=1, maxRetries=2)
    stream.wait_for_state("closed")
    assert stream.messages[-1].reason == "max retries"
    [words] = said(tab)
    assert words.startswith(f"EventStream {url}: no answer: ")
    assert reasons(stream) == [words.removeprefix(f"EventStream {url}: ")] * 2


def test_what_the_policy_of_the_page_forbids_is_said_once(
    browser: Browser, site: Site, group: str
) -> None:
    policy = urlencode({"policy": "connect-src 'none'"})
    with Tab.open(browser, site.origin, f"/page-with-policy/?{policy}") as tab:
        stream = tab.follow_event_stream(f"/events/{group}/", maxDelay=1, maxRetries=2)
        stream.wait_for_state("closed")
        assert site.statuses(f"/events/{group}/") == []
        assert len([words for words in said(tab) if words.startswith("EventStream ")]) == 1
        assert all(reason.startswith("no answer: ") for reason in reasons(stream))


def test_a_lost_connection_says_why(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    with site.network.without_server():
        wait_until(lambda: len(stream.errors) > 1, "it is not lost")
    assert reasons(stream)[1] == "502"
    assert said(tab) == [f"EventStream {site.origin}/events/{group}/: 502"]


# Coming back at once


@pytest.mark.parametrize("sign", ["online", "pageshow", "visibilitychange"])
def test_a_page_that_is_back_does_not_wait(tab: Tab, site: Site, group: str, sign: str) -> None:
    url = f"/says/?text=retry:600000%0A%0A&of={group}-{sign}"
    stream = tab.follow_event_stream(url)
    wait_until(lambda: stream.errors, "it is not lost")
    assert site.statuses(url) == [200]
    target = "document" if sign == "visibilitychange" else "window"
    tab.run(f"{target}.dispatchEvent(new Event(arguments[0]))", sign)
    wait_until(lambda: len(site.statuses(url)) == 2, "it does not come back")


def test_leaving_a_page_is_no_error(tab: Tab, site: Site, group: str) -> None:
    opened(tab, f"/events/{group}/")
    tab.run(
        "const [source] = Object.values(sources);"
        "sessionStorage.errors = '';"
        "source.source.addEventListener('error', () => (sessionStorage.errors += 'error '));"
        "setTimeout(() => (location.href = '/slow-page/?seconds=2'))"
    )
    wait_until(lambda: tab.run("return document.title") == "there", "it does not get there")
    assert tab.run("return sessionStorage.errors") == ""
    wait_until(lambda: site.open_streams() == 0, "the stream is still open")


def test_a_page_that_stays_after_all_goes_on(tab: Tab, site: Site, group: str) -> None:
    stream = opened(tab, f"/events/{group}/")
    wait_until(lambda: stream.last_event_id, "no position")
    # What ends all connections of a page.
    tab.run("window.stop()")
    site.publish(group, "one")
    stream.wait_for("message", "one")
    assert stream.received == [("message", "one")]


def test_what_a_service_worker_has_made_is_read(tab: Tab) -> None:
    """Such an answer has no URL."""
    tab.run(
        "const headers = { 'Content-Type': 'text/event-stream' };"
        "window.fetch = async () => new Response('data: made here\\n\\n', { headers });"
    )
    stream = tab.follow_event_stream("/events/none/", origins=[tab.run("return origin")])
    stream.wait_for("message", "made here")
    assert not any("URL" in reason for reason in reasons(stream))


# Handlers and options


def test_handlers_have_their_turn_from_when_they_were_set_first(tab: Tab) -> None:
    order = tab.run(
        SCRIPT
        + """
        const stream = make('/says/?text=data:x%0A%0A');
        const order = [];
        stream.addEventListener('message', () => order.push('first'));
        stream.onmessage = () => order.push('never');
        stream.addEventListener('message', () => order.push('third'));
        stream.onmessage = function () { order.push(this === stream && 'second'); };
        stream.addEventListener('message', () => resolve(order));
        """
        + END
    )
    assert order == ["first", "second", "third"]


def test_a_handler_that_is_set_anew_is_the_last(tab: Tab) -> None:
    order = tab.run(
        SCRIPT
        + """
        const stream = make('/says/?text=data:x%0A%0A');
        const order = [];
        stream.onmessage = () => order.push('handler');
        stream.addEventListener('message', () => order.push('listener'));
        stream.onmessage = null;
        stream.onmessage = () => { order.push('handler'); resolve(order); };
        """
        + END
    )
    assert order == ["listener", "handler"]


def test_a_handler_that_is_no_function_is_as_with_event_source(tab: Tab) -> None:
    values = """
        const values = [5, 'text', {}, () => 1, undefined, { handleEvent: 1 }, null];
        const read = (source) =>
          values.map((value) => {
            source.onmessage = value;
            return source.onmessage === value ? 'kept' : source.onmessage;
          });
    """
    ours, theirs, uncaught = tab.run(
        SCRIPT
        + values
        + """
        const uncaught = [];
        addEventListener('error', (event) => uncaught.push(event.message));
        const native = new EventSource('/says/');
        const theirs = read(native);
        native.close();
        const stream = make('/says/?text=data:x%0A%0A');
        const ours = read(stream);
        stream.onmessage = {};
        const tell = () => resolve([ours, theirs, uncaught]);
        stream.addEventListener('message', () => setTimeout(tell));
        """
        + END
    )
    assert ours == theirs
    assert uncaught == []


@pytest.mark.parametrize("options", ["null", "undefined", "{ withCredentials: null }", "ALL_NULL"])
def test_options_that_are_null_are_none(tab: Tab, site: Site, group: str, options: str) -> None:
    names = [
        "withCredentials",
        "credentials",
        "origins",
        "lastEventId",
        "json",
        "shared",
        "pauseWhenHidden",
        "silence",
        "maxDelay",
        "maxRetries",
        "method",
        "body",
        "headers",
        "csrf",
    ]
    all_null = "{{ {} }}".format(", ".join(f"{name}: null" for name in names))
    site.publish(group, "before")
    url, credentials = tab.run(
        SCRIPT
        + f"const stream = make('/history/{group}/', {options.replace('ALL_NULL', all_null)});"
        "stream.onmessage = () => resolve([stream.url, stream.withCredentials]);" + END
    )
    assert (url, credentials) == (f"{site.origin}/history/{group}/", False)


# One page


def test_eight_clients_of_one_page_share_a_connection(tab: Tab, site: Site, group: str) -> None:
    """HTTP/1.1 has six for a host: with a connection each, the page would get no answer more."""
    streams = tab.run(
        "return define().then(() => import('/static/django_sse/event-stream.js'))"
        "  .then(({ EventStream }) => {"
        "    for (let number = 0; number < 8; number += 1) {"
        "      const source = new EventStream(arguments[0]);"
        "      const messages = [], errors = [], reasons = [];"
        "      source.onmessage = ({ type, data, lastEventId }) =>"
        "        messages.push([type, data, lastEventId, 0]);"
        "      source.onerror = () => errors.push([source.readyState, 0]);"
        "      sources[number] = { source, messages, errors, reasons };"
        "    }"
        "    return Object.keys(sources);"
        "  })",
        f"/events/{group}/",
    )
    followed = [EventSource(tab, name) for name in streams]
    for stream in followed:
        stream.wait_for_state("open")
    assert tab.get("/open-streams/")
    site.publish(group, "one")
    for stream in followed:
        stream.wait_for("message", "one")
    with site.network.cut():
        for stream in followed:
            stream.wait_for_state("connecting")
        site.publish(group, "two")
    for stream in followed:
        stream.wait_for("message", "two")
        assert stream.received == [("message", "one"), ("message", "two")]
    assert site.open_streams() == 1
    followed[0].close()
    site.publish(group, "three")
    for stream in followed[1:]:
        stream.wait_for("message", "three")
    assert followed[0].received[-1] == ("message", "two")
    assert site.open_streams() == 1
    for stream in followed:
        stream.close()
    wait_until(lambda: site.open_streams() == 0, "the stream is still open")


def test_one_that_comes_later_shares_it_as_soon_as_it_is_there(
    tab: Tab, site: Site, group: str
) -> None:
    first = opened(tab, f"/history/{group}/")
    site.publish(group, "one")
    first.wait_for("message", "one")
    later = tab.follow_event_stream(f"/history/{group}/", json=True)
    later.wait_for("message", "one")
    wait_until(lambda: site.open_streams() == 1, "they do not share")
    site.publish(group, "two")
    for stream in (first, later):
        stream.wait_for("message", "two")
        assert stream.received == [("message", "one"), ("message", "two")]
        stream.close()


def test_streams_without_ids_begin_together_or_not_at_all(tab: Tab, site: Site, group: str) -> None:
    """Who comes later would miss what there was before."""
    url = f"/progress/?steps=4&of={group}"
    one = tab.follow_event_stream(url, maxRetries=1)
    another = tab.follow_event_stream(url, maxRetries=1, json=True)
    one.wait_for("progress", '{"step":1,"steps":4}')
    later = tab.follow_event_stream(url, maxRetries=1, pauseWhenHidden=True)
    for stream in (one, another, later):
        stream.wait_for_state("closed")
        assert [message.type for message in stream.messages] == [*["progress"] * 4, "close"]


# Long lines


def test_a_long_line_takes_no_time(tab: Tab) -> None:
    """Each piece of it was looked through again with all before it: minutes."""
    tab.run(
        "const piece = new TextEncoder().encode('x'.repeat(1024));"
        "const body = new ReadableStream({"
        "  start(controller) {"
        "    controller.enqueue(new TextEncoder().encode('data: '));"
        "    for (let n = 0; n < 8192; n += 1) controller.enqueue(piece);"
        "    controller.enqueue(new TextEncoder().encode('\\n\\nid: 5\\n\\n'));"
        "    controller.close();"
        "  },"
        "});"
        "const headers = { 'Content-Type': 'text/event-stream' };"
        "window.fetch = async () => new Response(body, { headers });"
    )
    lengths = tab.run(
        SCRIPT
        + "const stream = make('/events/none/');"
        + "stream.onmessage = ({ data }) => { stream.close(); resolve(data.length); };"
        + END
    )
    assert lengths == 8192 * 1024
