"""Tokens of services that publish: who has one may publish to the groups that it covers."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Final

from django.db.models import QuerySet
from django.utils.crypto import constant_time_compare

from django_sse.exceptions import InvalidGroup
from django_sse.groups.names import validate_group
from django_sse.groups.namespaces import current_namespace, full_name, plain_name, prefix_of
from django_sse.logs import log_seldom
from django_sse.models import PublishToken
from django_sse.stores import get_store
from django_sse.stores.clock import DatabaseTime, database_time

_TOKEN: Final = re.compile(r"sse_([0-9]{1,18})_([A-Za-z0-9_-]{43})", re.ASCII)
_PATTERN: Final = re.compile(r"[A-Za-z0-9\-_.*?]{1,99}", re.ASCII)
_SECRET_BYTES: Final = 32
_DAY: Final = 24 * 3600 * 1_000_000

# How old the time of the last use may be, in microseconds: a write for each request costs more than
# it tells.
_USED_AGE: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class TokenPublisher:
    """Who publishes with a token."""

    id: str
    patterns: Sequence[str]

    def covers(self, group: str) -> bool:
        """Return whether one of the token's patterns matches a group."""
        return any(fnmatchcase(group, pattern) for pattern in self.patterns)


def create_token(name: str, groups: Sequence[str], days: float | None = None) -> str:
    """Make a token of the current tenant, and return it. Nobody can read it again.

    Args:
        name: What it is called, written as a group is.
        groups: Patterns of the groups that it covers: ``*`` is any text, ``?`` any character.
        days: For how long it counts; None for ever.

    Raises:
        InvalidGroup: The name or a pattern is wrong.
        IntegrityError: There is a token of this name.
    """
    full = full_name(current_namespace(), validate_group(name))
    for pattern in groups:
        if not _PATTERN.fullmatch(pattern):
            raise InvalidGroup(
                f"{pattern!r} is not a pattern for groups: use 1 to 99 ASCII letters, digits, "
                "hyphens, underscores and full stops, `*` for any text and `?` for any character."
            )
    now = database_time(get_store().using)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    made = tokens().create(
        name=full,
        digest=_digest(secret),
        groups=" ".join(groups),
        created=now,
        expires=None if days is None else now + int(days * _DAY),
    )
    return f"sse_{made.pk}_{secret}"


def publisher_with(token: str) -> TokenPublisher | None:
    """Return who publishes with a token of the current tenant, and note that it is used.

    Returns None if there is no such token, or not any more.

    Raises:
        Exception: The database could not be asked.
    """
    if not (parts := _TOKEN.fullmatch(token)):
        return None
    found = tokens().annotate(now=DatabaseTime()).filter(pk=int(parts[1])).first()
    if found is None or not constant_time_compare(found.digest, _digest(parts[2])):
        return None
    if full_name(current_namespace(), plain_name(found.name)) != found.name:
        return None
    if found.expires is not None and found.expires <= found.now:
        return None
    if found.used is None or found.used < found.now - _USED_AGE:
        try:
            tokens().filter(pk=found.pk).update(used=found.now)
        except Exception as error:
            # It is only a note: what is published heals a connection to a server of before.
            log_seldom("It could not be noted that a token was used.", exc_info=error)
    return TokenPublisher(found.digest, found.groups.split())


def tokens_of_tenant() -> list[PublishToken]:
    """Return the tokens of the current tenant, by name."""
    prefix = prefix_of(full_name(current_namespace(), "any"))
    return [each for each in tokens().order_by("name") if prefix_of(each.name) == prefix]


def revoke_token(name: str) -> bool:
    """Delete a token of the current tenant. Return whether there was one.

    Raises:
        InvalidGroup: The name is none of a token.
    """
    full = full_name(current_namespace(), validate_group(name))
    deleted, _ = tokens().filter(name=full).delete()
    return bool(deleted)


def tokens() -> QuerySet[PublishToken]:
    """Return all tokens. They are in the database of the store."""
    return PublishToken.objects.using(get_store().using)


def _digest(secret: str) -> str:
    # 256 random bits cannot be guessed, however fast the hash is. A slow one, which passwords need,
    # would only let strangers make the server work.
    return sha256(secret.encode()).hexdigest()
