"""The template tags that ``{% load django_sse %}`` loads."""

from django import template
from django.template import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_sse.publishing import position

register = template.Library()


@register.simple_tag
def event_stream_position(*groups: str) -> str:
    """Return the id at which the groups stand now, for a stream that goes on from this page.

    Put it before the data that the stream continues: querysets are read where the template uses
    them. For data that the view has already read, give the template a ``position(...)`` that the
    view took before it read them.

        {% event_stream_position "news" as here %}
        <script>new EventSource("/events/?lastEventId={{ here }}")</script>

    Raises:
        InvalidGroup: Not a valid group name.
        SynchronousOnlyOperation: The template is rendered on a running event loop. Use
            ``aposition`` in the view.
    """
    return position(*groups)


@register.simple_tag(takes_context=True)
def event_stream_script(context: Context) -> SafeString:
    """Return the module script that defines ``<event-stream>`` and ``window.EventStream``.

        {% event_stream_script %}
        <ul id="headlines"></ul>
        <event-stream src="/events/news/" target="#headlines" swap="afterbegin"></event-stream>

    It has the nonce of the Content Security Policy of Django or django-csp, if there is one.
    """
    # Compared with None, because Django's nonce is false until it is written.
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(context.get("request"), "csp_nonce", None)
    return format_html(
        '<script type="module" src="{}"{}></script>',
        static("django_sse/event-stream.js"),
        "" if nonce is None else format_html(' nonce="{}"', nonce),
    )
