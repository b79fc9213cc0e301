"""A page that renders a state and streams on from there."""

import gzip
import re
import subprocess
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.contrib.staticfiles import finders
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.template import Context, Template
from django.test import RequestFactory
from django.utils.functional import SimpleLazyObject
from pytest_django import Settings

from django_sse import publish
from django_sse.exceptions import InvalidGroup
from django_sse.groups.position import parse_position
from django_sse.views import EventStreamView
from tests.live.readers import npm
from tests.streams import open_stream

pytestmark = pytest.mark.usefixtures("memory_store")

PAGE = Template(
    '{% load django_sse %}{% event_stream_position "news" as here %}{{ rows }} {{ here }}'
)


async def test_what_happens_while_the_page_is_rendered_is_streamed_to_it() -> None:
    def rows() -> str:
        publish("news", "while the rows are read")
        return "rows"

    def render() -> str:
        publish("news", "before")
        return PAGE.render(Context({"rows": rows}))

    shown, here = (await sync_to_async(render)()).split()
    assert shown == "rows"
    view = EventStreamView.as_view(groups=["news"])
    async with open_stream(view, f"/?lastEventId={here}") as stream:
        assert (await stream.next_event()).data == "while the rows are read"


async def test_the_position_of_several_groups_is_one_text_without_anything_to_quote() -> None:
    template = Template('{% load django_sse %}{% event_stream_position "a" "b" %}')
    text = await sync_to_async(template.render)(Context())
    assert parse_position(text, ["a", "b"]) == {"a": 0, "b": 0}
    assert not set(text) & set("&<>\"'%+#? ")


async def test_a_bad_group_is_refused() -> None:
    template = Template('{% load django_sse %}{% event_stream_position "a b" %}')
    with pytest.raises(InvalidGroup):
        await sync_to_async(template.render)(Context())


async def test_on_a_running_loop_it_says_what_to_use() -> None:
    with pytest.raises(SynchronousOnlyOperation, match="aposition"):
        PAGE.render(Context({"rows": ""}))


# The script

SCRIPT = Template("{% load django_sse %}{% event_stream_script %}")


def test_the_script_is_a_module_of_the_static_files(rf: RequestFactory) -> None:
    html = SCRIPT.render(Context({"request": rf.get("/")}))
    assert html == '<script type="module" src="/static/django_sse/event-stream.js"></script>'
    assert finders.find("django_sse/event-stream.js")


@pytest.mark.parametrize("place", ["context", "request"])
def test_the_script_has_the_nonce_of_the_page(rf: RequestFactory, place: str) -> None:
    request = rf.get("/")
    context = Context({"request": request})
    # Lazy, as both Django's and django-csp's are: it is made when it is first written.
    nonce = SimpleLazyObject(lambda: "abc")
    if place == "context":
        context["csp_nonce"] = nonce
    else:
        request.csp_nonce = nonce  # type: ignore[attr-defined]
    assert ' nonce="abc"></script>' in SCRIPT.render(context)


def test_the_script_may_have_a_hash_in_its_name(tmp_path: Path, settings: Settings) -> None:
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
    }
    call_command("collectstatic", verbosity=0, interactive=False)
    source = SCRIPT.render(Context()).split('"')[3]
    assert re.fullmatch(r"/static/django_sse/event-stream\.[0-9a-f]{12}\.js", source)
    assert (tmp_path / source.removeprefix("/static/")).exists()


@pytest.mark.once
def test_the_script_is_small() -> None:
    """Five kilobytes as bundlers have it sent: minified, and compressed."""
    npm.install()
    path = finders.find("django_sse/event-stream.js")
    assert isinstance(path, str)
    terser = npm.NODE_MODULES / ".bin/terser"
    minified = subprocess.check_output([terser, "--module", "--compress", "--mangle", "--", path])
    assert len(gzip.compress(minified)) <= 5 * 1024
