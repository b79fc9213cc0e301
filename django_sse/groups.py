"""Group patterns: ``job-{pk}`` and the arguments of a URL make ``job-7``."""

from collections.abc import Mapping
from string import Formatter
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_sse.exceptions import InvalidGroup
from django_sse.stores.base import validate_group
from django_sse.text import plain


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
