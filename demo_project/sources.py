"""The demo's source code, for its pages. It is read from the files, so it is what runs."""

import re
from collections.abc import Iterator
from keyword import kwlist

from django.conf import settings
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe

_TEXT = r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
_JAVASCRIPT = "async await catch const export for from function if import let new of return try"
# The names of the regular expressions' groups are the classes in the style sheet.
_PARTS = {
    ".py": re.compile(
        r"(?P<comment>#.*)"
        rf'|(?P<string>\b[rbf]?(?:{_TEXT})|"""(?s:.*?)"""|{_TEXT})'
        r"|(?P<name>(?m:^\s*@[\w.]+))"
        rf"|(?P<keyword>\b(?:{'|'.join(kwlist)})\b)",
    ),
    ".js": re.compile(
        r"(?P<comment>//.*|/\*(?s:.*?)\*/)"
        rf"|(?P<string>{_TEXT}|`[^`]*`)"
        rf"|(?P<keyword>\b(?:{_JAVASCRIPT.replace(' ', '|')})\b)"
    ),
    ".html": re.compile(
        r"(?P<comment>\{#.*?#\}|<!--(?s:.*?)-->)"
        r"|(?P<name>\{%.*?%\}|\{\{.*?\}\})"
        rf"|(?P<keyword></?[\w-]+|/?>)"
        rf"|(?P<string>=(?:{_TEXT}))"
    ),
}


def read(path: str) -> str:
    """Return the text of a file, by its path in the project's directory."""
    text: str = (settings.BASE_DIR / path).read_text(encoding="utf-8")
    return text.rstrip("\n")


def highlight(text: str, suffix: str) -> SafeString:
    """Return source code as HTML in which comments, strings, names and keywords have a class."""
    return mark_safe("".join(_pieces(text, _PARTS[suffix])))


def _pieces(text: str, parts: re.Pattern[str]) -> Iterator[str]:
    end = 0
    for part in parts.finditer(text):
        yield escape(text[end : part.start()])
        yield format_html('<span class="{}">{}</span>', part.lastgroup, part.group())
        end = part.end()
    yield escape(text[end:])
