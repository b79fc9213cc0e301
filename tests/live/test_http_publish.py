"""Publishing by HTTP to real servers, by clients that are slow, broken, or mean harm."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from tests.docs.pages import blocks
from tests.live.client import SECONDS, connect
from tests.live.engines import running
from tests.live.servers import (
    ROOT,
    Server,
    launch,
    manage,
    project_environment,
    require,
    serve,
    unavailable,
)
from tests.ports import free_port

# What it shows is the servers' and the databases'.
pytestmark = pytest.mark.once

PAGE = "docs/publishing-by-http.md"
URLS = "tests.contrib.http_publish"
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module", params=["uvicorn", "daphne", "gunicorn-gevent"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    name = request.param
    require(name.partition("-")[0])
    application = f"tests.{'wsgi' if name == 'gunicorn-gevent' else 'asgi'}:application"
    directory = tmp_path_factory.mktemp(name)
    with serve(name, directory, application=application, LIVE_URLCONF=URLS) as server:
        yield server


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return asyncio.run(make_token(server.directory))


@contextmanager
def another(directory: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run one more server on the same database."""
    port = free_port()
    with launch("uvicorn", directory, port, "tests.asgi:application", **environment) as server:
        try:
            yield server
            assert not server.tracebacks()
        finally:
            print(server.log())  # noqa: T201


async def make_token(directory: Path, **environment: str) -> str:
    arguments = ("sse_token", "create", "test", "--group", "news", "--group", "test_*")
    return (await manage(directory, *arguments, **environment)).strip()


def client(server: Server, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{server.port}"
    return httpx.Client(base_url=url, headers=headers, verify=False, timeout=SECONDS)


def event(**fields: Any) -> str:
    return json.dumps({"group": "news", "data": "hi", **fields})


async def history(port: int, group: str, last: str) -> list[str]:
    """Return the data of a group up to some that are there."""
    async with connect(port, f"/history/{group}/") as stream:
        found = [(await stream.event()).data]
        while found[-1] != last:
            found.append((await stream.event()).data)
        return found


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (os.urandom(5000), {}, 400),
        (b"\xff\xfe\x00" * 100, {"Content-Type": NDJSON}, 400),
        (b"\0" * 1000, {}, 400),
        (b"\n" * 1024 * 1024, {"Content-Type": NDJSON}, 400),
        (b"[" * 1_000_000, {}, 400),
        (b'{"a":' * 200_000, {}, 400),
        (b'{"group":"news","data":' + b"[" * 900_000 + b"]" * 100_000 + b"}", {}, 400),
        (b"{}\n" * 300_000, {"Content-Type": NDJSON}, 413),
        (b"x" * (1024 * 1024 + 1), {}, 413),
        (b"x" * 30_000_000, {}, 413),
        (event(event="a\r\nid: 7").encode(), {}, 400),
        (event(event="\0").encode(), {}, 400),
        (event(group="news\0").encode(), {}, 400),
        (b'{"group": "news", "data": 1, "data": 2}', {}, 400),
        (event(group="secret").encode(), {}, 403),
        (event().encode(), {"Authorization": "Bearer x"}, 401),
        (event().encode(), {"Authorization": "Bearer " + "x" * 6000}, 401),
        (event().encode(), {"Content-Type": "text/plain"}, 415),
        (event().encode(), {"Idempotency-Key": ""}, 400),
    ],
)
def test_what_is_wrong_is_refused_and_the_server_goes_on(
    server: Server, token: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    with client(server, token) as http:
        response = http.post("/publish/", content=content, headers=headers)
        assert response.status_code == status
        assert response.json()["status"] == status
        assert http.post("/publish/", content=event()).status_code == 200


def test_a_large_body_without_a_length_is_refused(server: Server, token: str) -> None:
    over_asgi = server.name != "gunicorn-gevent"
    with client(server, token) as http:
        chunks = iter([b"x" * 65536] * 100)
        assert http.post("/publish/", content=chunks).status_code == (413 if over_asgi else 411)
        small = http.post("/publish/", content=iter([event().encode()]))
        assert small.status_code == (200 if over_asgi else 411)


async def test_a_thousand_lines_are_published(server: Server, token: str) -> None:
    group = f"test_{server.name}"
    lines = "\n".join(event(group=group, data=n) for n in range(1000))
    with client(server, token) as http:
        response = http.post("/publish/", content=lines, headers={"Content-Type": NDJSON})
    assert len(response.json()["ids"]) == 1000
    if server.name != "gunicorn-gevent":
        assert await history(server.port, group, "999") == [str(n) for n in range(1000)]


def test_bodies_that_come_slowly_or_never_are_in_nobodys_way(server: Server, token: str) -> None:
    head = (
        f"POST /publish/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    stalled = []
    try:
        for _ in range(50):
            stalled.append(socket.create_connection(("127.0.0.1", server.port)))
            stalled[-1].sendall(head.encode())
        with client(server, token) as http:
            assert http.post("/publish/", content=event()).status_code == 200
        # Of one that goes on, nothing is lost.
        stalled[0].sendall(event(data="slow").encode()[1:].ljust(499))
        stalled[0].settimeout(SECONDS)
        assert stalled[0].recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for each in stalled:
            each.close()
    with client(server, token) as http:
        assert http.post("/publish/", content=event()).status_code == 200


@pytest.mark.parametrize(
    ("language", "command"), [("sh", ["sh", "-ec"]), ("js", ["node", "--input-type=module", "-e"])]
)
async def test_the_examples_of_the_documentation_publish(
    server: Server, tmp_path: Path, language: str, command: list[str]
) -> None:
    if not shutil.which({"sh": "curl", "js": "node"}[language]):
        unavailable(f"{language} needs curl or node")
    name = f"example-{language}"
    arguments = ("sse_token", "create", name, "--group", "news", "--group", "orders-*")
    token = (await manage(server.directory, *arguments)).strip()
    [code] = [code for code in blocks(language, PAGE) if "https://example.com/publish/" in code]
    code = code.replace("https://example.com", f"http://127.0.0.1:{server.port}")
    if language == "sh":
        code = code.replace("export TOKEN=sse_...", "").replace("curl", "curl --fail -s")
    else:
        code += "console.log(JSON.stringify({ ids }));"
    output = await asyncio.to_thread(
        subprocess.run,
        [*command, code],
        env={**os.environ, "TOKEN": token},
        stdout=subprocess.PIPE,
        check=True,
        timeout=SECONDS,
    )
    assert len(json.loads(output.stdout)["ids"]) == (1 if language == "sh" else 2)


def test_the_example_in_python_publishes(server: Server, token: str) -> None:
    [code] = [code for code in blocks("python", PAGE) if "urlopen" in code]
    names: dict[str, Any] = {}
    exec(code.replace("https://example.com", f"http://127.0.0.1:{server.port}"), names)
    assert len(names["publish_by_http"](token, group="news", data={"pk": 7})) == 1


# Idempotency keys, with processes side by side and processes that die


@pytest.mark.parametrize("engine", ["postgresql", "redis"])
async def test_of_the_same_requests_to_two_servers_one_is_published(
    engine: str, tmp_path: Path
) -> None:
    require("uvicorn")
    async with running(engine, tmp_path) as of_engine:
        environment = {**of_engine, "LIVE_URLCONF": URLS}
        token = await make_token(tmp_path, **environment)
        with (
            another(tmp_path, environment) as one,
            another(tmp_path, environment) as other,
        ):
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

            async def post(http: httpx.AsyncClient, port: int, n: int) -> httpx.Response:
                url = f"http://127.0.0.1:{port}/publish/"
                keyed = {**headers, "Idempotency-Key": f"key-{n}"}
                while True:
                    response = await http.post(url, content=event(data=n), headers=keyed)
                    if response.status_code != 409:
                        return response
                    await asyncio.sleep(0.05)

            async with httpx.AsyncClient(verify=False, timeout=SECONDS) as http:
                for n in range(20):
                    responses = await asyncio.gather(
                        *(post(http, server.port, n) for server in [one, other] * 3)
                    )
                    assert {response.status_code for response in responses} == {200}
                    assert len({response.content for response in responses}) == 1
            assert await history(one.port, "news", "19") == [str(n) for n in range(20)]


CRASH = """
    import os, sys

    import django

    django.setup()

    from django.test import RequestFactory

    from django_sse.contrib.http_publish import PublishView
    from django_sse.contrib.http_publish.idempotency import KeyedRequest

    token, content, place = sys.argv[1:]
    setattr(KeyedRequest, place, lambda *args: os._exit(9))
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "key"}
    request = RequestFactory().post(
        "/", content, content_type="application/json", headers=headers
    )
    print(PublishView.as_view()(request).content)
"""


@pytest.mark.parametrize(
    ("engine", "place", "published"),
    [("sqlite", "remember", False), ("postgresql", "delete_expired", True)],
)
async def test_a_process_that_dies_neither_loses_nor_doubles(
    engine: str, place: str, published: bool, tmp_path: Path
) -> None:
    require("uvicorn")
    async with running(engine, tmp_path) as of_engine:
        environment = {**of_engine, "LIVE_URLCONF": URLS}
        token = await make_token(tmp_path, **environment)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", dedent(CRASH), token, event(), place),
            cwd=ROOT,
            env=project_environment(tmp_path, **environment),
        )
        assert await process.wait() == 9
        with another(tmp_path, environment) as server, client(server, token) as http:
            headers = {"Idempotency-Key": "key"}
            answers = [http.post("/publish/", content=event(), headers=headers) for _ in range(2)]
            assert {answer.status_code for answer in answers} == {200}
            assert answers[0].content == answers[1].content
            end = http.post("/publish/", content=event(data="end"))
            assert end.status_code == 200
            assert await history(server.port, "news", "end") == ["hi", "end"]
