"""Compressed streams in browsers, curl and Node, and on every server."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.browser import Tab
from tests.live.servers import Server, manage, serve, unavailable
from tests.live.sites import Site, run

SITE = {"COMPRESS": True}


@pytest.mark.parametrize("client", ["EventSource", "EventStream"])
def test_a_browser_reads_each_event_as_it_comes(
    tab: Tab, site: Site, group: str, client: str
) -> None:
    group = f"{group}-{client}"
    url = f"/events/{group}/"
    stream = tab.follow(url) if client == "EventSource" else tab.follow_event_stream(url)
    stream.wait_for_state("open")
    for text in ("one", "two", "<p>" + "x" * 20_000 + "</p>"):
        site.publish(group, text)
        stream.wait_for("message", text)
    site.cancel(group, "over")
    stream.wait_for("close", '{"reason":"over"}')


@pytest.mark.once
@pytest.mark.parametrize("name", ["daphne", "uvicorn", "hypercorn", "granian"])
async def test_curl_reads_each_event_as_it_comes_and_sees_a_whole_end(
    name: str, tmp_path: Path, group: str
) -> None:
    program = shutil.which("curl")
    if not program:
        unavailable("curl is not installed")
    with serve(name, tmp_path, LIVE_DJANGO_SSE=json.dumps(SITE)) as server:
        curl = await asyncio.create_subprocess_exec(
            *(program, "--compressed", "--no-buffer", "--silent", "--show-error", "--include"),
            f"http://127.0.0.1:{server.port}/events/{group}/",
            stdout=subprocess.PIPE,
        )
        assert curl.stdout
        read = b""
        async with asyncio.timeout(30):
            while b"\nid: " not in read:
                read += await curl.stdout.readline()
            assert b"content-encoding: gzip" in read.lower()
            await _push(server, group, "one")
            while b"data: one\n" not in read:
                read += await curl.stdout.readline()
            await manage(server.directory, "sse_cancel", group, "--reason", "over")
            read += await curl.stdout.read()
            assert b'data: {"reason":"over"}\n\n' in read
            # 23: a body that cannot be decoded; 18: one that is not whole.
            assert await curl.wait() == 0


@pytest.mark.once
def test_node_reads_each_event_and_a_whole_end(tmp_path: Path, group: str) -> None:
    program = shutil.which("node")
    if not program:
        unavailable("node is not installed")
    script = """
        const response = await fetch(process.argv[1]);
        console.log(response.headers.get("content-encoding"));
        for await (const chunk of response.body) {
          process.stdout.write(Buffer.from(chunk));
        }
    """
    with run(tmp_path, COMPRESS=True) as site:
        site.publish(group, "one")
        site.cancel(group, "over")
        read = subprocess.run(
            [program, "--input-type=module", "--eval", script, f"{site.origin}/history/{group}/"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    assert read.startswith("gzip\n")
    assert "data: one\n" in read
    assert read.endswith('data: {"reason":"over"}\n\n')


async def _push(server: Server, group: str, line: str) -> None:
    await manage(server.directory, "sse_push", group, line)
