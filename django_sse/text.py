"""Text and numbers as their plain types."""

from typing import Any

from django.utils.functional import Promise


def plain(value: Any) -> Any:
    """Return text as a ``str`` and a whole number as an ``int``, whatever their class.

    Other values are returned unchanged. ``str()`` and ``format()`` of a member of ``(str, Enum)``
    or ``(int, Enum)`` return its name, not its value. Lazy text is not a ``str`` at all.
    """
    if type(value) is str:
        return value
    if isinstance(value, Promise) or (isinstance(value, str) and not issubclass(type(value), str)):
        # A translation, or a SimpleLazyObject, which claims to be of another class.
        value = str(value)
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
