"""Group names, and the patterns from which views make them."""

import re
from collections.abc import Mapping
from hashlib import sha256
from string import Formatter, ascii_letters, digits
from types import NoneType
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model
from django.utils.functional import Promise

from django_sse.exceptions import InvalidGroup
from django_sse.text import plain

_LONGEST_NAME: Final = 99

_GROUP_NAME: Final = re.compile(rf"[A-Za-z0-9\-_.]{{1,{_LONGEST_NAME}}}", re.ASCII)

# The digest of a shortened name follows this. No escaped byte begins like it.
_DIGEST_MARK: Final = "_z"

_UNESCAPED: Final = frozenset(b"-" + ascii_letters.encode() + digits.encode())
_ESCAPED: Final = [chr(byte) if byte in _UNESCAPED else f"_{byte:02x}" for byte in range(256)]

# A name in a store, where the tenant's prefix comes first: see `namespaces`.
_FULL_NAME: Final = re.compile(rf"(?:[A-Za-z0-9\-_.=]{{1,63}}/)?{_GROUP_NAME.pattern}", re.ASCII)

NAME_LENGTH: Final = 163
"""The most characters that a group's full name may have."""

OWNER_PREFIX: Final = "~"
"""The prefix of the names of owners' groups, which no other group can have: see ``Kind.END``."""

OWNER_KEY_LENGTH: Final = 33
"""The number of characters of an owner key, which is the name of the owner's group."""

USER_GROUP_PARTS: Final = ("sse", "user")
"""The first parts of the names of users' own groups."""

_USER_GROUP_PREFIX: Final = ".".join((*USER_GROUP_PARTS, ""))
USER_GROUP_PATTERN: Final = _USER_GROUP_PREFIX + "{user}"
"""What only a ``UserEventStreamView`` streams."""


def group_name(*parts: object) -> str:
    """Return a group name for any parts, such as a primary key or a user's text.

    For example, ``group_name("room", "été 7")``. Different parts never make the same name, unlike
    the patterns of a view's ``groups``. Parts are compared as text: 7 and "7" are the same part.

    The parts are joined by full stops. ASCII letters, digits and hyphens stay as they are, and each
    other byte of the UTF-8 text becomes ``_xx`` in hexadecimal. A name of more than 99 characters
    keeps only its beginning, followed by a digest of the whole name.

    Args:
        parts: Text, which is taken as it is, or anything else, which is converted by ``str()``,
            such as a number or a UUID.

    Raises:
        TypeError: A part is None or a bool, like a field that was never set; or it is an instance
            of a model, or a user. Two of these may have the same text, so give the primary key.
        ValueError: There are no parts, or the only part is empty.
    """
    name = ".".join(map(_escaped, parts))
    if not name:
        raise ValueError("A group's name needs a part that is not empty, such as its kind.")
    if len(name) <= _LONGEST_NAME:
        return name
    end = _DIGEST_MARK + sha256(name.encode()).hexdigest()
    return name[: _LONGEST_NAME - len(end)] + end


def _escaped(part: object) -> str:
    value = plain(part)
    _require_distinct_text(value)
    # Lone surrogates are escaped, too, so that different texts make different names.
    return "".join(_ESCAPED[byte] for byte in str(value).encode("utf-8", "surrogatepass"))


def _require_distinct_text(value: object) -> None:
    """Refuse a value whose text does not tell it from others.

    Raises:
        TypeError: It is None, a bool, or an instance of a model or a user.
    """
    # isinstance sees through a lazy object.
    if isinstance(value, NoneType | bool):
        raise TypeError(f"A part of a group's name is text, a number or the like, not {value!r}.")
    if isinstance(value, Model) or hasattr(value, "is_authenticated"):
        raise TypeError(
            f"Give the primary key of {value!r} as the part of a group's name: two "
            f"{type(value).__name__} objects may have the same text."
        )


def validate_group(group: str) -> str:
    """Return the group's name as plain text, if Channels allows it.

    Raises:
        InvalidGroup: The name is not 1 to 99 ASCII letters, digits, hyphens, underscores and full
            stops.
    """
    name = plain(group)
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
        raise InvalidGroup(
            f"{group!r} is not a group name: use 1 to 99 ASCII letters, digits, hyphens, "
            "underscores and full stops."
        )
    return name


def validate_group_or_owner_key(name: str) -> str:
    """Return the full name of a group or of an owner's group.

    Raises:
        InvalidGroup: The name is neither.
    """
    if not _FULL_NAME.fullmatch(name.removeprefix(OWNER_PREFIX)):
        raise InvalidGroup(f"{name!r} is not the name of a group in a store.")
    return str(plain(name))


def expand_group(pattern: str, kwargs: Mapping[str, Any]) -> str:
    """Return the group name that a pattern makes from a view's keyword arguments.

    Raises:
        InvalidGroup: The arguments make no valid name, or that of a user's own group; or one of
            several fields contains a separator of the pattern. With ``{a}-{b}``, 1-2 and 3 would
            make the same group as 1 and 2-3.
        ImproperlyConfigured: The pattern itself cannot work, or an argument is None, a bool, or an
            instance of a model or a user: two of them may have the same text.
    """
    fields, between = _parse(pattern)
    for field in fields:
        if field not in kwargs:
            raise ImproperlyConfigured(
                f"The group pattern {pattern!r} has the field {field!r}, which is not a keyword "
                f"argument of the URL. Its arguments are: {', '.join(kwargs) or 'none'}."
            )
    separators = set("".join(between))
    kwargs = {name: plain(value) for name, value in kwargs.items()}
    for field in fields:
        try:
            _require_distinct_text(kwargs[field])
        except TypeError as error:
            raise ImproperlyConfigured(
                f"The group pattern {pattern!r} cannot use the argument {field!r} of the URL. "
                f"{error} Put its "
                "primary key in the URL, or write an EventStreamView with `get_groups`."
            ) from error
        if found := separators & set(str(kwargs[field])):
            raise InvalidGroup(
                f"{field}={kwargs[field]!r} contains {''.join(sorted(found))!r}, which separates "
                f"the fields of the group pattern {pattern!r}."
            )
    name = validate_group(plain(pattern).format(**kwargs))
    if name.startswith(_USER_GROUP_PREFIX):
        # Otherwise a pattern such as `{slug}` would show anybody's events to everybody.
        raise InvalidGroup(
            f"{name!r} is a user's own group, which only a UserEventStreamView streams."
        )
    return name


def fields_of(pattern: str) -> list[str]:
    """Return the names of a pattern's fields.

    Raises:
        ImproperlyConfigured: The pattern cannot work.
    """
    return _parse(pattern)[0]


def could_make(pattern: str, group: str, arguments: Mapping[str, str]) -> bool:
    """Return whether a pattern makes a group's name from some keyword arguments.

    Args:
        pattern: The pattern.
        group: The name of the group.
        arguments: Regular expressions of the arguments as text, as far as they are known.

    Raises:
        ImproperlyConfigured: The pattern cannot work.
    """
    pattern = plain(pattern)
    if group.startswith(_USER_GROUP_PREFIX) and pattern != USER_GROUP_PATTERN:
        return False
    separators = "".join(_parse(pattern)[1])
    any_text = f"[^{re.escape(separators)}]*" if separators else ".*"
    expression = ""
    for literal, field, spec, conversion in Formatter().parse(pattern):
        expression += re.escape(literal)
        if field is not None:
            # With separators, an argument has less than its expression allows.
            is_known = field in arguments and not (spec or conversion or separators)
            expression += f"(?:{arguments[field]})" if is_known else any_text
    return re.fullmatch(expression, group) is not None


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that can never make a group name, whatever the view's keyword arguments are.

    Raises:
        ImproperlyConfigured: The pattern cannot work.
    """
    if isinstance(pattern, Promise):
        # A lazy translation has no language before a request.
        return
    if not isinstance(pattern, str):
        raise ImproperlyConfigured(f"Groups are text, not {type(pattern).__name__}: {pattern!r}.")
    fields, _ = _parse(pattern)
    # The shortest name that the pattern can make.
    literal = "".join(text for text, *_ in Formatter().parse(pattern))
    try:
        validate_group(literal or "x" * len(fields))
    except InvalidGroup as error:
        raise ImproperlyConfigured(f"The group pattern {pattern!r} cannot work: {error}") from error


def _parse(pattern: str) -> tuple[list[str], list[str]]:
    """Return the fields of a pattern, and the separators between them.

    Raises:
        ImproperlyConfigured: The pattern cannot work.
    """
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ImproperlyConfigured(f"The group pattern {pattern!r} is broken: {error}.") from error
    fields = [field for _, field, _, _ in parts if field is not None]
    between = [literal for literal, field, _, _ in parts if field is not None][1:]
    if "" in between:
        raise ImproperlyConfigured(
            f"The group pattern {pattern!r} has fields with nothing between them, so different "
            "arguments would make the same group."
        )
    return fields, between
