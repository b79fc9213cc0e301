"""``{% load django_sse %}``."""

from django import template

from django_sse.publishing import position

register = template.Library()


@register.simple_tag
def event_stream_position(*groups: str) -> str:
    """Return where the groups stand now, for a stream that goes on from this page.

    Put it before what it is to go on from: querysets are read where the template uses them. For
    what the view itself has read before, give the template a ``position(...)`` taken earlier.

        {% event_stream_position "news" as here %}
        <script>new EventSource("/events/?lastEventId={{ here }}")</script>

    Raises:
        InvalidGroup: A name is none.
        SynchronousOnlyOperation: Rendered on a running event loop: take ``aposition`` in the view.
    """
    return position(*groups)
