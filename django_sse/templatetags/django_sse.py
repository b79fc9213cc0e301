"""``{% load django_sse %}``."""

from django import template
from django.template import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

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


@register.simple_tag(takes_context=True)
def event_stream_script(context: Context) -> SafeString:
    """Return the script that defines ``<event-stream>`` and ``window.EventStream``, as a module.

        {% event_stream_script %}
        <ul id="headlines"></ul>
        <event-stream src="/events/news/" target="#headlines" swap="afterbegin"></event-stream>

    It has the nonce of Django's or of django-csp's Content Security Policy, where there is one.
    """
    # Not asked whether it is true: Django's is not before it is written.
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(context.get("request"), "csp_nonce", None)
    return format_html(
        '<script type="module" src="{}"{}></script>',
        static("django_sse/event-stream.js"),
        "" if nonce is None else format_html(' nonce="{}"', nonce),
    )
