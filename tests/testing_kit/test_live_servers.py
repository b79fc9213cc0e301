"""Live servers of Django and of Channels, with a browser's view of a stream."""

from pathlib import Path

import httpx
import pytest
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, LiveServerTestCase

from tests.testing_kit.test_plugin import SETTINGS, URLS, project, run, write

__all__ = ["project"]

# What it shows is the servers'.
pytestmark = pytest.mark.once


class Refused:
    live_server_url: str

    @pytest.fixture(autouse=True)
    def logged(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog

    def test_a_stream_is_refused_and_the_log_says_what_to_use(self) -> None:
        response = httpx.get(f"{self.live_server_url}/events/news/")
        assert response.status_code == 500
        assert any(
            record.name == "django_sse" and "ChannelsLiveServerTestCase" in record.message
            for record in self.caplog.records
        )


class OnLiveServer(Refused, LiveServerTestCase):
    pass


class OnStaticLiveServer(Refused, StaticLiveServerTestCase):
    pass


@pytest.mark.usefixtures("transactional_db")
def test_the_sync_client_says_what_to_use(client: Client) -> None:
    expected = r"Client\.get by django_sse\.testing\.open_stream\(client, path\)"
    with pytest.raises(ImproperlyConfigured, match=expected):
        client.get("/events/news/")


ASGI = """
    import os
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project_settings")
    from django_sse.asgi import get_asgi_application
    application = get_asgi_application()
"""

LIVE = """
    import httpx
    from channels.testing import ChannelsLiveServerTestCase
    from django_sse import publish
    from django_sse.event import Decoder

    class Live(ChannelsLiveServerTestCase):
        serve_static = False

        def test_a_stream(self):
            decoder, events = Decoder(), []
            with httpx.stream("GET", self.live_server_url + "/events/", timeout=30) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                chunks = stream.iter_bytes()
                decoder.feed(next(chunks))
                publish("news", {"title": "hi"}, event="headline")
                while not events:
                    events += decoder.feed(next(chunks))
            assert [event.event for event in events] == ["headline"]
"""


def on_file(project: Path, store: str) -> None:
    """Have the test database in a file, since the server is another process."""
    settings = (SETTINGS % store).replace(
        '"NAME": ":memory:"', '"NAME": "db.sqlite3", "TEST": {"NAME": "test.sqlite3"}'
    )
    more = '    ASGI_APPLICATION = "asgi.application"\n'
    write(project, "project_settings.py", settings + more)
    write(project, "urls.py", URLS)
    write(project, "asgi.py", ASGI)
    write(project, "tests.py", LIVE)


def test_a_live_server_of_channels_streams_what_the_test_publishes(project: Path) -> None:
    on_file(project, '"database"')
    status, said = run(project, "manage.py", "test")
    assert status == 0, said
    assert "Ran 1 test" in said
