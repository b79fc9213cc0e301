"""``<event-stream>``: HTML over the wire, into a page without a script of its own."""

from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pytest

from tests.live.browser import Browser, Tab, wait_until
from tests.live.sites import Site

pytestmark = pytest.mark.in_turn

# What `/foreign/` sends.
FOREIGN = "<b>foreign</b>"

COUNT = "return document.querySelectorAll(`event-stream${arguments[0]}`).length"


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator["Page"]:
    with Tab.open(browser, site.origin) as tab:
        yield Page(tab)


class Page:
    """A page with the script, and elements that come later."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        tab.run("return define()")

    def put(self, html: str) -> None:
        """Put HTML into the page."""
        self.tab.run("document.body.innerHTML = arguments[0]", html)

    def show(self, html: str) -> None:
        """Put HTML into the page, and wait until its stream is open."""
        self.put(html)
        self.wait_for_state("open")

    def wait_for_state(self, state: str) -> None:
        selector = f"event-stream[state={state}]"
        wait_until(
            lambda: self.tab.run("return !!document.querySelector(arguments[0])", selector), state
        )

    def html(self, selector: str) -> str:
        return str(self.tab.run("return document.querySelector(arguments[0]).innerHTML", selector))

    def wait_for_html(self, selector: str, html: str) -> None:
        wait_until(lambda: self.html(selector) == html, lambda: self.html(selector))


def test_the_html_of_an_event_is_swapped_in(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/">...</event-stream>')
    for html in ("<b>one</b>", "<p>\n  two\n</p>\n"):
        site.publish(group, html)
        page.wait_for_html("event-stream", html)


@pytest.mark.parametrize(
    ("swap", "html"),
    [
        ("innerHTML", '<ul id="list"><b>new</b></ul>'),
        ("outerHTML", "<b>new</b>"),
        ("textContent", '<ul id="list">&lt;b&gt;new&lt;/b&gt;</ul>'),
        ("beforebegin", '<b>new</b><ul id="list"><li>old</li></ul>'),
        ("afterbegin", '<ul id="list"><b>new</b><li>old</li></ul>'),
        ("beforeend", '<ul id="list"><li>old</li><b>new</b></ul>'),
        ("afterend", '<ul id="list"><li>old</li></ul><b>new</b>'),
    ],
)
def test_where_it_goes_is_said_by_target_and_swap(
    page: Page, site: Site, group: str, swap: str, html: str
) -> None:
    page.show(
        f'<event-stream src="/events/{group}/" target="#list" swap="{swap}"></event-stream>'
        '<main><ul id="list"><li>old</li></ul></main>'
    )
    site.publish(group, "<b>new</b>")
    page.wait_for_html("main", html)


@pytest.mark.parametrize("swap", ["beforebegin", "afterbegin", "beforeend", "afterend"])
def test_an_element_takes_the_place_of_the_one_with_its_id(
    page: Page, site: Site, group: str, swap: str
) -> None:
    page.show(
        f'<event-stream src="/events/{group}/" target="#list" swap="{swap}"></event-stream>'
        '<main><ul id="list"><li id="a">old</li><li id="b">b</li></ul></main>'
    )
    site.publish(group, '<li id="a">new<script>window.ran = true</script></li>\n')
    script = "<script>window.ran = true</script>"
    page.wait_for_html("main", f'<ul id="list"><li id="a">new{script}</li><li id="b">b</li></ul>')
    assert page.tab.run("return window.ran") is None


def test_what_has_no_place_yet_is_swapped_in(page: Page, site: Site, group: str) -> None:
    page.show(
        f'<event-stream src="/events/{group}/" target="ul" swap="beforeend"></event-stream>'
        '<ul><li id="a">old</li></ul>'
    )
    site.publish(group, '<li id="a">new</li><li id="b">b</li>')
    page.wait_for_html("ul", '<li id="a">new</li><li id="b">b</li>')
    site.publish(group, " and text ")
    page.wait_for_html("ul", '<li id="a">new</li><li id="b">b</li> and text ')


def test_elements_are_removed_by_their_ids(page: Page, site: Site, group: str) -> None:
    page.show(
        f'<event-stream src="/events/{group}/" swap="remove"></event-stream>'
        '<ul><li id="a">a</li><li id="b">b</li></ul>'
    )
    site.publish(group, '<li id="a">whatever</li><li id="missing"></li><li></li>')
    page.wait_for_html("ul", '<li id="b">b</li>')
    assert page.html("event-stream") == ""


def test_scripts_in_it_do_not_run(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    html = "<script>window.ran = true</script>"
    site.publish(group, html)
    page.wait_for_html("event-stream", html)
    assert page.tab.run("return window.ran") is None


def test_it_takes_the_events_that_it_names(page: Page, site: Site) -> None:
    page.show('<event-stream src="/progress/?steps=2" event="step progress"></event-stream>')
    page.wait_for_html("event-stream", '{"step":2,"steps":2}')


def test_the_end_shows_and_is_one(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    site.cancel(group, "over")
    page.wait_for_state("closed")
    assert site.statuses(f"/events/{group}/") == [200]


def test_an_element_that_leaves_the_page_leaves_its_stream(
    page: Page, site: Site, group: str
) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    wait_until(lambda: site.open_streams() == 1, "no stream is open")
    page.tab.run("document.querySelector('event-stream').remove()")
    wait_until(lambda: site.open_streams() == 0, "the stream is still open")


def test_an_element_that_is_moved_goes_on_where_it_was(page: Page, site: Site, group: str) -> None:
    page.show(
        f'<main></main><event-stream src="/history/{group}/" swap="beforeend"></event-stream>'
    )
    site.publish(group, "one")
    page.wait_for_html("event-stream", "one")
    page.tab.run("document.querySelector('main').append(document.querySelector('event-stream'))")
    page.wait_for_state("open")
    site.publish(group, "two")
    page.wait_for_html("main event-stream", "onetwo")


# Whose HTML it is


def blob(page: Page) -> str:
    return str(
        page.tab.run(
            "const options = { type: 'text/event-stream' };"
            "return URL.createObjectURL(new Blob([arguments[0]], options))",
            f"data: {FOREIGN}\n\n",
        )
    )


@pytest.mark.parametrize("trusted", ["", "null", "* {page} null blob: data: https://a.example"])
@pytest.mark.parametrize("scheme", ["data", "blob"])
def test_what_has_no_origin_is_nobodys_html(
    page: Page, site: Site, scheme: str, trusted: str
) -> None:
    src = blob(page) if scheme == "blob" else f"data:text/event-stream,data:{quote(FOREIGN)}%0A%0A"
    trusted = trusted.format(page=site.origin)
    page.put(f'<event-stream src="{src}" trusted-origin="{trusted}">mine</event-stream>')
    page.wait_for_state("closed")
    assert page.html("event-stream") == "mine"


@pytest.mark.parametrize(
    ("base", "src", "trusted"),
    [
        ("", "{other}/foreign/?case=1", ""),
        ("", "//{other_host}/foreign/?case=2", "{page} http://{other_host}.example *"),
        ("<base href='{other}'>", "/foreign/?case=3", "{other}/"),
    ],
)
def test_the_html_of_another_origin_is_not_asked_for(
    page: Page, site: Site, base: str, src: str, trusted: str
) -> None:
    other_host = site.other_origin.removeprefix("http://")
    html = f'{base}<event-stream src="{src}" trusted-origin="{trusted}">mine</event-stream>'
    page.put(html.format(page=site.origin, other=site.other_origin, other_host=other_host))
    page.wait_for_state("closed")
    assert page.html("event-stream") == "mine"
    assert site.statuses(src[src.index("/foreign/") :]) == []
    [said] = page.tab.run("return said")
    assert "trusted-origin" in said


def test_an_origin_that_is_trusted_is_read(page: Page, site: Site) -> None:
    page.put(
        f'<event-stream src="{site.other_origin}/foreign/"'
        f' trusted-origin="https://a.example\n {site.other_origin}"></event-stream>'
    )
    page.wait_for_html("event-stream", FOREIGN)


@pytest.mark.parametrize("origin", ["", "{other}"])
def test_no_redirect_brings_the_html_of_another_origin(page: Page, site: Site, origin: str) -> None:
    there = f"{site.origin_of('localhost')}/foreign/"
    redirect = f"/foreign/?{urlencode({'to': there})}&from={origin[1:-1]}"
    page.put(
        f'<event-stream src="{origin.format(other=site.other_origin)}{redirect}"'
        f' trusted-origin="{site.other_origin}">mine</event-stream>'
    )
    wait_until(lambda: len(site.statuses(redirect)) > 1, "it does not come back")
    assert page.html("event-stream") == "mine"


# What is wrong with it


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<event-stream></event-stream>", "src"),
        ('<event-stream src="/events/a/" swap="inside"></event-stream>', "inside"),
    ],
)
def test_what_is_wrong_with_it_is_said(page: Page, html: str, said: str) -> None:
    error = page.tab.run(
        "return new Promise((resolve) => {"
        "  window.addEventListener('error', (event) => resolve(event.message));"
        "  document.body.innerHTML = arguments[0];"
        "})",
        html,
    )
    assert said in error


# What becomes of it when its attributes change, as by a library that morphs the page


def change(page: Page, **attributes: str | None) -> None:
    """Give the element attributes, or take them away."""
    page.tab.run(
        "for (const [name, value] of Object.entries(arguments[0])) {"
        "  const element = document.querySelector('event-stream');"
        "  if (value === null) element.removeAttribute(name);"
        "  else element.setAttribute(name, value);"
        "}",
        {name.replace("_", "-"): value for name, value in attributes.items()},
    )


def assert_place_is_kept(page: Page, site: Site, group: str, **changed: str) -> None:
    """Change an element so that it asks anew: it goes on where it was."""
    site.publish(group, "one")
    page.wait_for_html("event-stream", "one")
    change(page, **changed)
    wait_until(lambda: len(site.statuses(f"/history/{group}/")) == 2, "it does not ask anew")
    page.wait_for_state("open")
    site.publish(group, "two")
    page.wait_for_html("event-stream", "onetwo")


def test_another_src_is_followed(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    site.publish(group, "one")
    page.wait_for_html("event-stream", "one")
    change(page, src=f"/history/{group}-2/", last_event_id=None)
    site.publish(f"{group}-2", "two")
    page.wait_for_html("event-stream", "two")
    wait_until(lambda: site.open_streams() == 1, "the first one is still open")
    # It has no place in the other one.
    assert [one.last_event_id for one in site.requests.of(f"/history/{group}-2/")] == [""]


def test_another_src_is_followed_after_the_end_of_the_first(
    page: Page, site: Site, group: str
) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    site.cancel(group, "over")
    page.wait_for_state("closed")
    change(page, swap="beforeend")
    change(page, src=f"/events/{group}-2/")
    page.wait_for_state("open")
    assert site.statuses(f"/events/{group}/") == [200]


@pytest.mark.parametrize(
    "option", ["shared", "pause_when_hidden", "with_credentials", "trusted_origin"]
)
def test_an_option_that_changes_keeps_the_place(
    page: Page, site: Site, group: str, option: str
) -> None:
    group = f"{group}-{option}"
    page.show(f'<event-stream src="/history/{group}/" swap="beforeend"></event-stream>')
    assert_place_is_kept(page, site, group, **{option: "https://a.example"})


def test_the_place_is_kept_in_a_page_that_was_opened_with_a_password(
    browser: Browser, site: Site, group: str
) -> None:
    origin = site.origin.replace("://", "://user:password@")
    with Tab.open(browser, origin) as tab:
        page = Page(tab)
        page.show(f'<event-stream src="/history/{group}/" swap="beforeend"></event-stream>')
        assert_place_is_kept(page, site, group, shared="")


def test_events_target_and_swap_follow_without_a_new_request(
    page: Page, site: Site, group: str
) -> None:
    page.show(f'<event-stream src="/events/{group}/" event="progress"></event-stream><p></p>')
    site.publish(group, "unseen")
    change(page, event=None, target="p", swap="textContent")
    site.publish(group, "<b>one</b>")
    page.wait_for_html("p", "&lt;b&gt;one&lt;/b&gt;")
    change(page, event="other", target=None, swap=None)
    site.act(f"/publish/{group}/", data="two", event="other")
    page.wait_for_html("event-stream", "two")
    assert site.statuses(f"/events/{group}/") == [200]


def test_its_state_survives_a_morph(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    change(page, state=None)
    page.wait_for_state("open")
    change(page, state="connecting")
    page.wait_for_state("open")


def test_changes_of_what_is_not_in_the_page_wait_for_it(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>')
    page.tab.run(
        "const element = document.querySelector('event-stream');"
        "element.remove();"
        "element.setAttribute('src', arguments[0]);"
        "return new Promise((resolve) => setTimeout(resolve)).then(() => {"
        "  document.body.append(element);"
        "})",
        f"/events/{group}-2/",
    )
    page.wait_for_state("open")
    site.publish(f"{group}-2", "two")
    page.wait_for_html("event-stream", "two")


def test_one_that_is_moved_at_once_keeps_its_stream(page: Page, site: Site, group: str) -> None:
    if not page.tab.run("return 'moveBefore' in document.body"):
        pytest.skip("this browser has no moveBefore")
    page.show(f'<main></main><event-stream src="/events/{group}/"></event-stream>')
    page.tab.run(
        "document.querySelector('main').moveBefore(document.querySelector('event-stream'), null)"
    )
    site.publish(group, "one")
    page.wait_for_html("main event-stream", "one")
    assert site.statuses(f"/events/{group}/") == [200]


def test_eight_of_one_page_share_a_connection(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/"></event-stream>' * 8)
    wait_until(lambda: page.tab.run(COUNT, "[state=open]") == 8, "they are not open")
    assert page.tab.get("/open-streams/")
    site.publish(group, "one")
    wait_until(
        lambda: page.tab.run("return document.body.textContent") == "one" * 8, "it does not come"
    )
    assert site.open_streams() == 1


# Pages that take no text for HTML

POLICY = "require-trusted-types-for 'script'; trusted-types django_sse"


@pytest.mark.parametrize("swap", ["innerHTML", "outerHTML", "beforeend"])
def test_where_html_has_to_be_trusted_it_is(
    browser: Browser, site: Site, group: str, swap: str
) -> None:
    with Tab.open(
        browser, site.origin, f"/page-with-policy/?{urlencode({'policy': POLICY})}"
    ) as tab:
        page = Page(tab)
        tab.run(
            "const main = document.createElement('main');"
            "const element = document.createElement('event-stream');"
            "element.setAttribute('src', arguments[0]);"
            "element.setAttribute('swap', arguments[1]);"
            "main.append(element);"
            "document.body.append(main);",
            f"/events/{group}/",
            swap,
        )
        page.wait_for_state("open")
        site.publish(group, "<b>one</b>")
        wait_until(lambda: tab.run("return !!document.querySelector('main b')"), "it is refused")


def test_html_that_is_not_wholly_trusted_is_sanitized(page: Page, site: Site, group: str) -> None:
    page.show(f'<event-stream src="/events/{group}/" swap="setHTML">old</event-stream>')
    page.tab.run("onerror = (message) => said.push(message)")
    site.publish(group, '<b onclick="evil()">one</b><script>evil()</script>')
    if page.tab.run("return 'setHTML' in document.body"):
        page.wait_for_html("event-stream", "<b>one</b>")
    else:
        wait_until(lambda: page.tab.run("return said.length"), "it says nothing")
        assert "setHTML" in page.tab.run("return said[0]")
        assert page.html("event-stream") == "old"
