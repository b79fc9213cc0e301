"""A page that renders a state and streams on from there."""

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.template import Context, Template

from django_sse import publish
from django_sse.exceptions import InvalidGroup
from django_sse.views import EventStreamView
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
    assert len(text.split("~")) == 2
    assert not set(text) & set("&<>\"'%+#? ")


async def test_a_bad_group_is_refused() -> None:
    template = Template('{% load django_sse %}{% event_stream_position "a b" %}')
    with pytest.raises(InvalidGroup):
        await sync_to_async(template.render)(Context())


async def test_on_a_running_loop_it_says_what_to_use() -> None:
    with pytest.raises(SynchronousOnlyOperation, match="aposition"):
        PAGE.render(Context({"rows": ""}))
