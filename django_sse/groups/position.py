"""Positions: how far a stream has got in each of its groups, as the ASCII text of an SSE ``id``.

A position has one entry for each group: a keyed hash of the group, a dot, and the number of the
last event in base 36. The hash is keyed so that nobody can find the name by trial. Entries are
joined by ``~`` and take at most 24 bytes for each group. The last part is a signature, so that
nobody can forge a position. The keys are derived from ``SECRET_KEY``.
"""

import hmac
import re
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from django_sse.groups.keys import accepted_keys, signature, signing_key
from django_sse.groups.namespaces import prefix_of

TERMINAL_MARK: Final = "~end"
"""The end of the last id of a client that must not come back: it is the whole id of a finished
generator view, and follows the position of a client whose login has ended."""

LEFT_MARK: Final = f"~{TERMINAL_MARK}"
"""What follows the last id of a client of a generator view whose login has ended: that id may be
empty."""

MAX_LENGTH: Final = 16 * 1024
"""In characters. A longer ``Last-Event-ID`` cannot come from this library, and is not read."""

LOST: Final = -1
"""The number of a client whose position nobody can read any more: before every group's first."""

# Two keys: a group may have the same name as an entry, and its hash must not be that entry's
# signature.
_SIGNING_PURPOSE: Final = "position"
_HASHING_PURPOSE: Final = "group in a position"
_SEPARATOR: Final = "~"
_ENTRY: Final = re.compile(r"([A-Za-z0-9_-]{11})\.([0-9a-z]{1,11})", re.ASCII)
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = [f"{high}{low}" for high in _DIGITS for low in _DIGITS]
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def format_position(numbers: Mapping[str, int]) -> str:
    """Return the id that says how far a stream has got.

    Args:
        numbers: The number of the last event of each group.
    """
    if not numbers:
        return ""
    hash_key = signing_key(_HASHING_PURPOSE)
    entries = _SEPARATOR.join([_entry(hash_key, *item) for item in numbers.items()])
    signed = _signature(signing_key(_SIGNING_PURPOSE), _prefix(numbers), entries)
    return f"{entries}{_SEPARATOR}{signed}"


class GroupPositions:
    """The positions of streams that follow one group alone."""

    __slots__ = ("_begin", "_high", "_key", "_mark", "_prefix")

    def __init__(self, group: str) -> None:
        # The parts that do not depend on the number.
        self._mark = f"{group_hash(group)}."
        self._prefix = prefix_of(group)
        self._key = signing_key(_SIGNING_PURPOSE)
        # Most numbers differ from the one before only in their last two digits.
        self._high, self._begin = 0, ""

    def format(self, number: int) -> str:
        """Return what ``format_position`` returns for the group and this number."""
        high, low = divmod(number, len(_PAIRS))
        if high != self._high:
            self._high, self._begin = high, f"{self._mark}{_base36(high)}"
        entry = f"{self._begin}{_PAIRS[low]}" if high else f"{self._mark}{_base36(number)}"
        return f"{entry}{_SEPARATOR}{_signature(self._key, self._prefix, entry)}"


def parse_position(last_event_id: str, groups: Iterable[str]) -> dict[str, int]:
    """Return the numbers that a client's ``Last-Event-ID`` has for these groups.

    Never raises, whatever the client sent. Entries of other groups are ignored. A text that looks
    like a position but has no valid signature gives ``LOST`` for all groups: it may be from before
    a change of ``SECRET_KEY``, or for another tenant. Its client has missed events, and nobody
    knows which. Any other text is not a position and gives no numbers.
    """
    if len(last_event_id) > MAX_LENGTH or not _ENTRY.search(last_event_id):
        return {}
    entries, _, sent = last_event_id.removesuffix(TERMINAL_MARK).rpartition(_SEPARATOR)
    groups = list(groups)
    keys = zip(accepted_keys(_SIGNING_PURPOSE), accepted_keys(_HASHING_PURPOSE), strict=True)
    for key, hash_key in keys:
        valid = _signature(key, _prefix(groups), entries)
        if hmac.compare_digest(valid.encode(), sent.encode("utf-8", "replace")):
            return _numbers(hash_key, entries, groups)
    return dict.fromkeys(groups, LOST)


def group_hash(group: str) -> str:
    """Return the 11 characters that stand for a group in the positions that clients get."""
    return _group_hash(signing_key(_HASHING_PURPOSE), group)


def _signature(key: bytes, prefix: str, entries: str) -> str:
    # No entry contains the slash that ends a tenant's prefix.
    return _short(signature(key, f"{prefix}{entries}".encode("utf-8", "replace")))


def _prefix(groups: Iterable[str]) -> str:
    # All groups of a position belong to one tenant.
    return prefix_of(next(iter(groups), ""))


def _numbers(key: bytes, entries: str, groups: Iterable[str]) -> dict[str, int]:
    numbers = {
        match[1]: int(match[2], 36)
        for entry in entries.split(_SEPARATOR)
        if (match := _ENTRY.fullmatch(entry))
    }
    hashes = {group: _group_hash(key, group) for group in groups}
    return {group: numbers[hashed] for group, hashed in hashes.items() if hashed in numbers}


# Cached: of a stream's many groups only one has moved since its last id.
@lru_cache(maxsize=4096)
def _entry(key: bytes, group: str, number: int) -> str:
    return f"{_group_hash(key, group)}.{_base36(number)}"


@lru_cache(maxsize=4096)
def _group_hash(key: bytes, group: str) -> str:
    return _short(signature(key, group.encode()))


def _short(digest: bytes) -> str:
    # 64 bits suffice, since each guess takes a request.
    return b2a_base64(digest[:8]).translate(_URL_SAFE)[:11].decode()


def _base36(number: int) -> str:
    if number < 0:
        raise ValueError(f"No event has the number {number}.")
    high, low = divmod(number, len(_PAIRS) ** 2)
    first, second = divmod(low, len(_PAIRS))
    return f"{_high_digits(high)}{_PAIRS[first]}{_PAIRS[second]}".lstrip("0") or "0"


# Cached: the numbers of a group differ in their last digits.
@lru_cache(maxsize=4096)
def _high_digits(number: int) -> str:
    high, low = divmod(number, len(_PAIRS))
    return f"{_high_digits(high) if high else ''}{_PAIRS[low]}"
