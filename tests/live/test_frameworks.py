"""The hooks of ``docs/frameworks.md``, run as they are there."""

import json
import re

import pytest

from tests.live.browser import Tab, wait_until
from tests.live.readers import npm
from tests.live.servers import ROOT
from tests.live.sites import Site

PAGE = ROOT / "docs/frameworks.md"

# What a bundler makes of React, whose packages are no modules.
REACT = "export const { useEffect, useState } = window.React;"

# Modules by their names, as a page without a bundler has them, and then the one of the page.
OPEN = """
    const [classic, modules, script] = arguments;
    const add = (type, text) => {
      const element = document.createElement("script");
      Object.assign(element, { type, text });
      document.body.append(element);
    };
    for (const text of classic) add("text/javascript", text);
    const imports = { "django-sse": "/static/django_sse/event-stream.js" };
    for (const [name, text] of Object.entries(modules)) {
      imports[name] = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    }
    add("importmap", JSON.stringify({ imports }));
    const main = document.createElement("main");
    document.body.append(main);
    add("module", script);
"""


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    npm.install()


def hook(framework: str) -> str:
    """Return the hook for a framework."""
    [code] = re.findall(
        rf"^## {framework}\n.*?^```js\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(code)


def package(path: str) -> str:
    return (npm.NODE_MODULES / path).read_text()


def assert_follows_its_url(tab: Tab, site: Site, group: str) -> None:
    def until_it_shows(text: str) -> None:
        wait_until(
            lambda: tab.run("return document.querySelector('main').textContent") == text,
            lambda: tab.run("return document.body.innerHTML"),
        )

    def publish(group: str, title: str) -> None:
        site.act(f"/publish/{group}/", data=json.dumps({"title": title}), event="headline")

    wait_until(lambda: site.open_streams() == 1, "it does not open")
    publish(group, "one")
    until_it_shows("one, one")
    tab.run("go(arguments[0])", f"/history/{group}-2/")
    wait_until(lambda: site.statuses(f"/history/{group}-2/") == [200], "it does not follow")
    publish(f"{group}-2", "two")
    until_it_shows("two, two")
    wait_until(lambda: site.open_streams() == 1, "the first one is still open")
    tab.run("leave()")
    wait_until(lambda: site.open_streams() == 0, "it is still open")
    assert site.statuses(f"/history/{group}/") == [200]


def test_react(tab: Tab, site: Site, group: str) -> None:
    component = """
        import { useEventStream } from "hook";

        const { createElement, StrictMode, useState } = React;
        function Headline({ url }) {
          return useEventStream(url, "headline")?.title ?? "";
        }
        function App() {
          const [url, setURL] = useState("/history/%s/");
          window.go = setURL;
          const headline = (key) => createElement(Headline, { key, url });
          return [headline(1), ", ", headline(2)];
        }
        const root = ReactDOM.createRoot(document.querySelector("main"));
        root.render(createElement(StrictMode, null, createElement(App)));
        window.leave = () => root.unmount();
    """
    classic = ("react/umd/react.development.js", "react-dom/umd/react-dom.development.js")
    modules = {"react": REACT, "hook": hook("React")}
    tab.run(OPEN, [package(path) for path in classic], modules, component % group)
    assert_follows_its_url(tab, site, group)


def test_vue(tab: Tab, site: Site, group: str) -> None:
    component = """
        import { createApp, h, ref } from "vue";
        import { useEventStream } from "hook";

        const url = ref("/history/%s/");
        const Headline = {
          setup() {
            const data = useEventStream(url, "headline");
            return () => data.value?.title ?? "";
          },
        };
        const app = createApp({ render: () => [h(Headline), ", ", h(Headline)] });
        app.mount("main");
        window.go = (address) => (url.value = address);
        window.leave = () => app.unmount();
    """
    modules = {
        "vue": package("@vue/runtime-dom/dist/runtime-dom.esm-browser.prod.js"),
        "hook": hook("Vue"),
    }
    tab.run(OPEN, [], modules, component % group)
    assert_follows_its_url(tab, site, group)
