"""Text and numbers as they are written down."""

from typing import Any

from django.utils.functional import Promise


def plain(value: Any) -> Any:
    """Return text or a whole number as just that, whatever class it is of; else what was given.

    ``str()`` and ``format()`` of a member of ``(str, Enum)`` or ``(int, Enum)`` are its name, not
    its value; lazy text is no ``str`` at all.
    """
    if type(value) is str:
        return value
    if isinstance(value, Promise) or (isinstance(value, str) and not issubclass(type(value), str)):
        # A translation; or a SimpleLazyObject, which says that it is of another class.
        value = str(value)
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
