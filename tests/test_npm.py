"""What npm brings is what was looked at: packages of known hashes, without scripts of theirs."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import django_sse
from tests import npm
from tests.live.readers.npm import PACKAGE_JSON
from tests.live.servers import ROOT, unavailable

pytestmark = pytest.mark.once

DEMO = ROOT / "demo_project"
DIRECTORIES = pytest.mark.parametrize(
    "directory",
    [DEMO, PACKAGE_JSON.parent, ROOT / "tests/live/mercure", ROOT / "tests/typescript"],
    ids=lambda one: one.name,
)


@DIRECTORIES
def test_each_package_has_its_hash_and_no_registry(directory: Path) -> None:
    text = (directory / "package-lock.json").read_text()
    assert '"resolved"' not in text
    packages = json.loads(text)["packages"]
    root = packages.pop("")
    wanted = json.loads((directory / "package.json").read_text())
    assert root["dependencies"] == wanted["dependencies"]
    assert packages
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")


def test_a_package_of_another_hash_is_not_installed(tmp_path: Path) -> None:
    lock = json.loads((DEMO / "package-lock.json").read_text())
    packages = lock["packages"]
    one, other = packages["node_modules/htmx.org"], packages["node_modules/htmx-ext-sse"]
    one["integrity"] = other["integrity"]
    shutil.copy(DEMO / "package.json", tmp_path)
    (tmp_path / "package-lock.json").write_text(json.dumps(lock))
    with pytest.raises(subprocess.CalledProcessError):
        npm.install(tmp_path)
    assert not (tmp_path / "node_modules/htmx.org/dist/htmx.min.js").exists()


def test_workers_of_the_tests_install_a_package_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    fake = programs / "npm"
    # As npm does it: what is there is deleted first.
    fake.write_text("#!/bin/sh\nrm -rf node_modules; echo >>runs; sleep 0.2; mkdir node_modules\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    (tmp_path / "package-lock.json").write_text("{}")
    # Each opens the file for itself, as processes do.
    with ThreadPoolExecutor(5) as workers:
        list(workers.map(npm.install, [tmp_path] * 5))
    assert (tmp_path / "runs").read_text() == "\n"
    assert (tmp_path / "node_modules/installed.json").read_text() == "{}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make demo` takes to install packages."""
    (tmp_path / "demo_project").mkdir()
    for name in ("Makefile", "demo_project/package.json", "demo_project/package-lock.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_packages(checkout: Path, path: str) -> str:
    """Run the step of `make demo`, with the programs of a path; return what it prints."""
    make = shutil.which("make")
    assert make
    return subprocess.run(
        [make, "demo_project/node_modules/installed.json"],
        cwd=checkout,
        env={"PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_make_demo_installs_what_the_lock_file_names(checkout: Path) -> None:
    fake = checkout / "npm"
    fake.write_text('#!/bin/sh\nmkdir node_modules && echo npm "$@"\n')
    fake.chmod(0o755)
    said = make_packages(checkout, f"{checkout}:/usr/bin:/bin")
    assert said.startswith("npm ci --ignore-scripts ")
    installed = checkout / "demo_project/node_modules/installed.json"
    assert installed.read_text() == (DEMO / "package-lock.json").read_text()
    assert "up to date" in make_packages(checkout, f"{checkout}:/usr/bin:/bin")


def test_make_demo_does_without_npm(checkout: Path) -> None:
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("sh", "rm", "cp"):
        (programs / name).symlink_to(f"/bin/{name}")
    assert "do without npm's packages" in make_packages(checkout, str(programs))


# The package that the client itself is

PACKAGE = ROOT / "django_sse/static/django_sse"
IMPORT = "import { EventStream } from 'django-sse'; console.log(typeof EventStream);"


def test_the_package_of_the_client_is_of_the_same_version() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    assert package["version"] == django_sse.__version__
    assert "dependencies" not in package
    for file in (package["main"], package["types"], *package["exports"]["."].values()):
        assert (PACKAGE / file).exists()


def test_the_package_is_installed_from_where_python_has_it(tmp_path: Path) -> None:
    if not shutil.which("npm"):
        unavailable("npm is not installed")
    for command in (
        ["npm", "install", "--offline", "--no-audit", "--no-fund", f"file:{PACKAGE}"],
        ["node", "--input-type=module", "--eval", IMPORT],
    ):
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        )
    assert done.stdout == "function\n"
