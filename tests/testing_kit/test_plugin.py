"""The kit in projects of others: with pytest, and with ``manage.py test``."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.docs.pages import ROOT

# Projects of their own, in processes of their own.
pytestmark = pytest.mark.once

SETTINGS = """
    SECRET_KEY = "secret"
    ROOT_URLCONF = "urls"
    INSTALLED_APPS = [
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django_sse",
    ]
    MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    # Its test database is in memory.
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    DJANGO_SSE = {"STORE": %s}
"""

URLS = """
    from django.urls import path
    from django_sse.decorators import event_stream

    @event_stream("news")
    async def news(request):
        pass

    urlpatterns = [path("events/", news)]
"""

MANAGE = """
    import os, sys
    from django.core.management import execute_from_command_line

    os.environ["DJANGO_SETTINGS_MODULE"] = "project_settings"
    execute_from_command_line(sys.argv)
"""

# Each test begins with nothing: the group has never been published to.
TESTS = """
    from django.contrib.auth.models import User
    from django.test import Client, TestCase, TransactionTestCase
    from django_sse import apublish, publish
    from django_sse.testing import EventStreamTestMixin, open_stream, published


    class Expectations(EventStreamTestMixin):
        def test_sync(self):
            self.client.force_login(User.objects.create(username="ada"))
            with open_stream(self.client, "/events/") as stream, published() as events:
                publish("news", {"title": "hi"}, event="headline")
                assert stream.next("headline").json() == {"title": "hi"}
                stream.nothing(seconds=SECONDS)
                assert stream.reconnect().status == 200
                stream.nothing()
            events.assert_published("news", {"title": "hi"}, event="headline")

        async def test_async(self):
            user = await User.objects.acreate(username="ada")
            await self.async_client.aforce_login(user)
            async with open_stream(self.async_client, "/events/") as stream:
                await apublish("news", {"title": "hi"}, event="headline")
                assert (await stream.next("headline")).json() == {"title": "hi"}
                await stream.nothing(seconds=SECONDS)


    class InTransactionTestCase(Expectations, TransactionTestCase):
        pass
"""
IN_TEST_CASE = """

    class InTestCase(Expectations, TestCase):
        def test_failure(self):
            with open_stream(self.client, "/events/", timeout=1) as stream:
                publish("news", "hi", event="other")
                stream.next("headline")
"""
# So long that the login is checked twice: the user is looked for again after a second.
SECONDS = "1.5"

WITH_PYTEST = """
    import pytest
    from django_sse import apublish, publish

    @pytest.mark.parametrize("turn", [1, 2])
    def test_sync(db, client, open_stream, published, turn):
        with open_stream(client, "/events/?lastEventId=") as stream:
            publish("news", "hi")
            assert stream.next().data == "hi"
            stream.nothing()
        published.assert_published("news", "hi")
        assert len(published) == 1

    @pytest.mark.parametrize("turn", [1, 2])
    @pytest.mark.django_db(transaction=True)
    async def test_async(async_client, open_stream, published, turn):
        async with open_stream(async_client, "/events/") as stream:
            await apublish("news", "hi")
            assert (await stream.next()).data == "hi"
            await stream.nothing()
        published.assert_published("news", "hi")

    def test_failure(db, client, open_stream):
        with open_stream(client, "/events/", timeout=1) as stream:
            publish("news", "hi", event="other")
            stream.next("headline")

    @pytest.mark.parametrize("turn", [1, 2])
    def test_each_test_begins_anew(turn):
        from django_sse.stores import get_store
        assert get_store().states(["news"])["news"].head == 0
        publish("news", "hi")
"""

CONFIGURATION = """
    [pytest]
    DJANGO_SETTINGS_MODULE = project_settings
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(dedent(text))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path, "project_settings.py", SETTINGS % '"memory"')
    write(tmp_path, "urls.py", URLS)
    write(tmp_path, "manage.py", MANAGE)
    return tmp_path


def run(directory: Path, *arguments: str) -> tuple[int, str]:
    environment = {"PYTHONPATH": f"{ROOT}:{directory}", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout


def pytest_in(directory: Path, *arguments: str) -> tuple[int, str]:
    return run(directory, "-m", "pytest", "-p", "pytest_django_sse", "-p", "no:xdist", *arguments)


def test_manage_py_test_on_an_sqlite_in_memory(project: Path) -> None:
    write(project, "tests.py", dedent(TESTS) + dedent(IN_TEST_CASE) + f"\nSECONDS = {SECONDS}\n")
    status, said = run(project, "manage.py", "test")
    assert "Ran 5 tests" in said, said
    assert status == 1
    assert "FAILED (failures=1)" in said
    # Nothing of the kit's own frames, or of those of asgiref.
    failure = said[said.index("Traceback") :]
    assert failure.count('  File "') == 1, failure
    assert "AssertionError: An event of type 'headline' was expected, but 'other' came.\n" in said
    assert "GET /events/ has sent:\n  > other: hi\n" in said


def test_the_database_store_on_an_sqlite_in_memory(project: Path) -> None:
    write(project, "project_settings.py", SETTINGS % '"database"')
    write(project, "tests.py", dedent(TESTS) + f"\nSECONDS = {SECONDS}\n")
    status, said = run(project, "manage.py", "test")
    assert status == 0, said
    assert "Ran 2 tests" in said


def test_pytest_has_the_fixtures_and_cleans_up(project: Path) -> None:
    write(project, "test_project.py", WITH_PYTEST)
    write(project, "pytest.ini", CONFIGURATION)
    status, said = pytest_in(project)
    assert "1 failed, 6 passed" in said, said
    assert status == 1
    # The last line of the test, and what has failed there.
    assert '>           stream.next("headline")\nE           AssertionError: An event of' in said


@pytest.mark.parametrize("uses_django", [True, False])
def test_the_plugin_does_nothing_to_a_project_without_the_library(
    tmp_path: Path, *, uses_django: bool
) -> None:
    imported = "import django.http" if uses_django else ""
    test = f"""
        import sys
        {imported}

        def test_nothing_is_imported():
            assert not [name for name in sys.modules if name.split(".")[0] == "django_sse"]
            assert {uses_django} or "django" not in sys.modules
    """
    write(tmp_path, "test_project.py", test)
    write(tmp_path, "pytest.ini", "[pytest]\n")
    plugins = ("-p", "no:django", "-p", "no:asyncio")
    status, said = pytest_in(tmp_path, *plugins)
    assert status == 0, said


def test_the_library_does_not_need_pytest(project: Path) -> None:
    write(project, "tests.py", "import django_sse.testing, sys\nassert 'pytest' not in sys.modules")
    _, said = run(project, "manage.py", "test")
    assert "Found 0 test" in said
