"""Text as it is written down."""


def plain(text: str) -> str:
    """Return a text of a subclass of ``str`` as the text that it is.

    ``str()`` and ``format()`` of a member of ``(str, Enum)`` are its name, not its value.
    """
    return str.__str__(text)
