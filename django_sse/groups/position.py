"""How far a stream has got in each of its groups, as the ASCII text of an SSE ``id``.

An entry is a keyed hash of the group, so that nobody finds its name by trying, a dot, and the
number of the last event in base 36. Entries are joined by ``~``: at most 24 bytes a group. The last
part is a signature, so that nobody makes a position up. The keys are of ``SECRET_KEY``.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from django_sse.groups.keys import accepted_keys, signature, signing_key
from django_sse.groups.namespaces import prefix_of

TERMINAL_MARK: Final = "~end"
"""What the id ends with that is left with a client for which it is over: the id of a finished
generator view, and what follows the position of a client whose login has ended."""

MAX_LENGTH: Final = 16 * 1024
"""In characters. A longer ``Last-Event-ID`` is none of ours, and is not read."""

LOST: Final = -1
"""The number, before every group's first, of who has a position that nobody can tell any more."""

# Apart: a group may be named as an entry is, and its hash must not be that entry's signature.
_PURPOSE: Final = "position"
_OF_GROUPS: Final = "group in a position"
_JOIN: Final = "~"
_ENTRY: Final = re.compile(r"([A-Za-z0-9_-]{11})\.([0-9a-z]{1,11})", re.ASCII)
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def format_position(numbers: Mapping[str, int]) -> str:
    """Return the id that says how far a stream has got: the last number of each group."""
    if not numbers:
        return ""
    of_groups = signing_key(_OF_GROUPS)
    entries = _JOIN.join(_entry(of_groups, group, number) for group, number in numbers.items())
    signed = signature(signing_key(_PURPOSE), _signed(numbers, entries))
    return f"{entries}{_JOIN}{_short(signed)}"


def parse_position(last_event_id: str, groups: Iterable[str]) -> dict[str, int]:
    """Return the numbers that a client's ``Last-Event-ID`` has for these groups.

    Never raises, whatever was sent. Entries of other groups are ignored. What looks like a position
    and is not signed by us, as one of before a change of ``SECRET_KEY``, or for another tenant, has
    ``LOST`` for all of the groups: their client has missed events, and nobody knows which. Anything
    else is no position.
    """
    if len(last_event_id) > MAX_LENGTH or not _ENTRY.search(last_event_id):
        return {}
    entries, _, signed = last_event_id.removesuffix(TERMINAL_MARK).rpartition(_JOIN)
    groups = list(groups)
    keys = zip(accepted_keys(_PURPOSE), accepted_keys(_OF_GROUPS), strict=True)
    for key, of_groups in keys:
        valid = _short(signature(key, _signed(groups, entries)))
        if hmac.compare_digest(valid.encode(), signed.encode("utf-8", "replace")):
            return _numbers(of_groups, entries, groups)
    return dict.fromkeys(groups, LOST)


def group_hash(group: str) -> str:
    """Return the 11 characters that stand for a group in the positions that are given out."""
    return _group_hash(signing_key(_OF_GROUPS), group)


def _signed(groups: Iterable[str], entries: str) -> bytes:
    # They are all of one tenant, and no entry has what its prefix ends with.
    prefix = prefix_of(next(iter(groups), ""))
    return f"{prefix}{entries}".encode("utf-8", "replace")


def _numbers(key: bytes, entries: str, groups: Iterable[str]) -> dict[str, int]:
    numbers = {
        match[1]: int(match[2], 36)
        for entry in entries.split(_JOIN)
        if (match := _ENTRY.fullmatch(entry))
    }
    marks = {group: _group_hash(key, group) for group in groups}
    return {group: numbers[mark] for group, mark in marks.items() if mark in numbers}


# Of a stream's many groups one has moved since its last id.
@lru_cache(maxsize=4096)
def _entry(key: bytes, group: str, number: int) -> str:
    return f"{_group_hash(key, group)}.{_base36(number)}"


@lru_cache(maxsize=4096)
def _group_hash(key: bytes, group: str) -> str:
    return _short(signature(key, group.encode()))


def _short(digest: bytes) -> str:
    # 64 bits: each try to guess them is a request.
    return urlsafe_b64encode(digest[:8])[:11].decode()


def _base36(number: int) -> str:
    if number < 0:
        raise ValueError(f"No event has the number {number}.")
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
