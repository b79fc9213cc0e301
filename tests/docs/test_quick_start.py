"""What is published as the distribution works for a newcomer who follows the quick start."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from email.message import Message
from pathlib import Path

import httpx
import pytest

import django_sse
from tests.docs.pages import PAGES, README, ROOT, blocks
from tests.live.client import SECONDS, connect
from tests.ports import free_port, wait_until_listening

# It installs what a project needs.
pytestmark = [pytest.mark.once, pytest.mark.timeout(300)]

PAGE = "docs/quick-start.md"
# What a newcomer types, in the order of the page.
INSTALL, MIGRATE, _, PUSH = blocks("sh", PAGE)
SERVE = "python manage.py runserver"
SERVERS = {
    "daphne": SERVE,
    # What the page ends with.
    "uvicorn": "uvicorn mysite.asgi:application --port",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as package indexes do."""
    directory = tmp_path_factory.mktemp("distribution")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(directory)]
    subprocess.run([*build, "--target", "sdist"], cwd=ROOT, check=True)
    [sdist] = directory.glob("django_event_streams-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    source = directory / sdist.name.removesuffix(".tar.gz")
    subprocess.run([*build, "--target", "wheel"], cwd=source, check=True)
    [wheel] = directory.glob("django_event_streams-*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = Path(django_sse.__file__).parent
    files = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {*files, "pytest_django_sse.py"}
    assert {"django_sse/py.typed", "django_sse/static/django_sse/event-stream.js"} <= names


def test_the_metadata_says_what_a_package_index_shows(metadata: Message) -> None:
    assert metadata["Name"] == "django-event-streams"
    assert metadata["Version"] == django_sse.__version__
    assert metadata["License-File"] == "LICENSE"
    assert metadata.get_payload() == PAGES[README]
    extras = {"mercure", "opentelemetry", "prometheus", "redis", "rest-framework"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    urls = {value.partition(",")[0] for value in metadata.get_all("Project-URL", [])}
    assert urls == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> "Project":
    """A new project in a virtual environment of its own, as the page has it set up."""
    directory = tmp_path_factory.mktemp("newcomer")
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    project = Project(directory)
    assert "path/to/checkout daphne" in INSTALL
    project.run(INSTALL.replace("path/to/checkout", f"uvicorn {wheel}"), directory)
    project.write_files()
    before_serving, _, _ = MIGRATE.partition(SERVE)
    assert "System check identified no issues" in project.run(before_serving)
    return project


class Project:
    """A project in a directory, with a shell as a newcomer has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "mysite"
        self.environment = {
            "HOME": os.environ["HOME"],
            "PATH": f"{directory / 'venv' / 'bin'}:{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COMPILE": "1",
            "PYTHONWARNINGS": "default",
        }

    def run(self, script: str, directory: Path | None = None) -> str:
        """Run what the page has for a shell; return what it prints."""
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=directory or self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def write_files(self) -> None:
        """Write each block of the page that begins with the name of a file."""
        names = []
        for language in ("python", "html"):
            for block in blocks(language, PAGE):
                if named := re.match(r"(?:#|<!--) ([\w/]+\.\w+)(, at the end)?", block):
                    path = self.root / named[1]
                    path.parent.mkdir(exist_ok=True)
                    before = path.read_text() if named[2] else ""
                    path.write_text(f"{before}\n{block}")
                    names.append(named[1])
        assert names == [
            "mysite/settings.py",
            "mysite/asgi.py",
            "mysite/views.py",
            "mysite/urls.py",
            "mysite/urls.py",
            "templates/headlines.html",
            "templates/headline.html",
        ]

    @contextmanager
    def served(self, command: str) -> Iterator[int]:
        """Serve the project on a port."""
        port = free_port()
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command.split(), str(port)],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                wait_until_listening(process, port)
                yield port
            finally:
                # With the process that runserver reloads.
                os.killpg(process.pid, 9)
                process.wait()
        output = (self.directory / "log").read_text()
        assert "Traceback" not in output, output


@pytest.mark.parametrize("server", SERVERS)
async def test_a_project_that_follows_the_quick_start_streams(
    server: str, project: Project
) -> None:
    with project.served(SERVERS[server]) as port:
        async with connect(port, "/events/") as stream:
            await stream.opened()
            project.run(PUSH)
            event = await stream.event()
            assert (event.event, event.data) == ("headline", "<li>Hello</li>")


def test_what_is_a_users_own_is_not_for_visitors(project: Project) -> None:
    with project.served(SERVE) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/my/events/", timeout=SECONDS).status_code == 401


def test_its_page_has_the_element_and_its_script(project: Project) -> None:
    with project.served(SERVE) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/", timeout=SECONDS)
        assert '<event-stream src="/events/"' in page.text
        script = re.search(r'<script type="module" src="(.*?)"', page.text)
        assert script
        answer = httpx.get(f"http://127.0.0.1:{port}{script[1]}", timeout=SECONDS)
        assert answer.status_code == 200
        assert "javascript" in answer.headers["content-type"]


def test_a_type_checker_finds_its_types(project: Project) -> None:
    # PEP 561: beside the package, in the environment.
    found = project.run(
        "python -c 'import django_sse, pathlib; print(pathlib.Path(django_sse.__file__).parent)'"
    )
    installed = Path(found.strip())
    assert installed.is_relative_to(project.directory)
    assert (installed / "py.typed").is_file()
