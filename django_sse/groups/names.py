"""Names of groups: which ones there are, and the patterns that views make them of."""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from django_sse.exceptions import InvalidGroup
from django_sse.text import plain

_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9\-_.]{1,99}", re.ASCII)

# In a store, behind the tenant whose it is: see `namespaces`.
_FULL_NAME: Final = re.compile(rf"(?:[A-Za-z0-9\-_.=]{{1,63}}/)?{_GROUP_NAME.pattern}", re.ASCII)

NAME_LENGTH: Final = 163
"""The characters of a group's full name, at the most."""

OWNER_PREFIX: Final = "~"
"""What the names of owners' groups begin with, and no other's can: see ``Kind.END``."""

OWNER_KEY_LENGTH: Final = 33
"""The characters of an owner's key, which is the name of its group."""


def validate_group(group: str) -> str:
    """Return the group's name, as Channels allows it.

    Raises:
        InvalidGroup: Not 1 to 99 ASCII letters, digits, hyphens, underscores and full stops.
    """
    name = plain(group)
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
        raise InvalidGroup(
            f"{group!r} is not a group name: it takes 1 to 99 ASCII letters, digits, "
            "hyphens, underscores and full stops."
        )
    return name


def validate_group_or_owner_key(name: str) -> str:
    """Return the full name of a group, or the one of an owner's.

    Raises:
        InvalidGroup: It is neither.
    """
    if not _FULL_NAME.fullmatch(name.removeprefix(OWNER_PREFIX)):
        raise InvalidGroup(f"{name!r} is not the name of a group in a store.")
    return str(plain(name))


def expand_group(pattern: str, kwargs: Mapping[str, Any]) -> str:
    """Return the group that a pattern names, given a view's keyword arguments.

    Raises:
        InvalidGroup: The arguments make no valid name, or, where a pattern has several fields, one
            of them contains what separates the fields: ``{a}-{b}`` of 1-2 and 3 would be the group
            of 1 and 2-3 as well.
        ImproperlyConfigured: The pattern itself cannot work.
    """
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ImproperlyConfigured(f"The group pattern {pattern!r} is broken: {error}.") from error
    fields = [field for _, field, _, _ in parts if field is not None]
    for field in fields:
        if field not in kwargs:
            raise ImproperlyConfigured(
                f"The group pattern {pattern!r} has the field {field!r}, which is no keyword "
                f"argument of the URL; those are: {', '.join(kwargs) or 'none'}."
            )
    between = [literal for literal, field, _, _ in parts if field is not None][1:]
    if "" in between:
        raise ImproperlyConfigured(
            f"The group pattern {pattern!r} has fields with nothing between them, so different "
            "arguments would make the same group."
        )
    separators = set("".join(between))
    kwargs = {name: plain(value) for name, value in kwargs.items()}
    for field in fields:
        if found := separators & set(str(kwargs[field])):
            raise InvalidGroup(
                f"{field}={kwargs[field]!r} contains {''.join(sorted(found))!r}, which separates "
                f"the fields of the group pattern {pattern!r}."
            )
    return validate_group(plain(pattern).format(**kwargs))
