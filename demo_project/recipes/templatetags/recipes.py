"""``{% load recipes %}``."""

from inspect import cleandoc

from django import template
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString

register = template.Library()


@register.simple_block_tag
def client(content: str) -> SafeString:
    """Put a part of the page where it stands, and show its source above it."""
    source = escape(cleandoc(content))
    return format_html("<pre><code>{}</code></pre>{}", source, content)
