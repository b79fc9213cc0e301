"""EventStream where there is no document: in workers, and in what renders pages on a server."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.browser import Browser, Tab, wait_until
from tests.live.servers import ROOT, unavailable
from tests.live.sites import Site, run

MODULE = ROOT / "django_sse/static/django_sse/event-stream.js"

WORKER = """
import { EventStream } from "%(origin)s/static/django_sse/event-stream.js";

const stream = new EventStream("%(origin)s/history/%(group)s/", { pauseWhenHidden: true });
for (const type of ["open", "message", "close"]) {
  stream.addEventListener(type, ({ data = null, reason = null }) => {
    postMessage([type, data, reason]);
  });
}
"""


def test_it_runs_in_a_worker(browser: Browser, site: Site, group: str) -> None:
    with Tab.open(browser, site.origin) as tab:
        tab.run(
            "const script = new Blob([arguments[0]], { type: 'text/javascript' });"
            "window.worker = new Worker(URL.createObjectURL(script), { type: 'module' });"
            "worker.onmessage = ({ data }) => said.push(data);"
            "worker.onerror = ({ message }) => said.push(message);",
            WORKER % {"origin": site.origin, "group": group},
        )
        wait_until(lambda: tab.run("return said.length"), "it does not open")
        site.publish(group, "one")
        with site.network.cut():
            pass
        site.publish(group, "two")
        wait_until(
            lambda: ["message", "two", None] in tab.run("return said"),
            lambda: tab.run("return said"),
        )
        site.cancel(group, "over")
        wait_until(
            lambda: tab.run("return said.at(-1)[0]") == "close", lambda: tab.run("return said")
        )
        told = [words for words in tab.run("return said") if words[0] != "open"]
        assert told == [
            ["message", "one", None],
            ["message", "two", None],
            ["close", '{"reason":"over"}', "over"],
        ]


def test_scripts_that_are_no_modules_have_it_of_the_page(browser: Browser, site: Site) -> None:
    with Tab.open(browser, site.origin) as tab:
        assert tab.run("return define().then(() => typeof window.EventStream)") == "function"


def node(script: str) -> str:
    """Run a module in Node; return what it prints."""
    program = shutil.which("node")
    if not program:
        unavailable("node is not installed")
    return subprocess.run(
        [program, "--input-type=module", "--eval", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.once
def test_it_is_imported_where_there_is_no_browser() -> None:
    script = (
        f"import {{ EventStream }} from {json.dumps(str(MODULE))}; console.log(EventStream.OPEN)"
    )
    assert node(script) == "1\n"


@pytest.mark.once
def test_it_reads_a_stream_where_there_is_no_browser(tmp_path: Path, group: str) -> None:
    with run(tmp_path) as site:
        site.publish(group, "one")
        site.cancel(group, "over")
        script = f"""
            import {{ EventStream }} from {json.dumps(str(MODULE))};
            const stream = new EventStream("{site.origin}/history/{group}/", {{ shared: true }});
            stream.addEventListener("close", ({{ reason }}) => console.log(reason));
            stream.onmessage = ({{ data }}) => console.log(data);
        """
        assert node(script) == "one\nover\n"
