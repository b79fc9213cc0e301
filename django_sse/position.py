"""How far a stream has got in each of its groups, as the ASCII text of an SSE ``id``.

An entry is a hash of the group, so that the id does not show its name, a dot, and the number of the
last event in base 36. Entries are joined by ``~``: at most 24 bytes a group.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

TERMINAL_MARK: Final = "~end"
"""What the id ends with that is left with a client for which it is over: the id of a finished
generator view, and what follows the position of a client whose login has ended."""

MAX_BYTES: Final = 16 * 1024
"""A longer ``Last-Event-ID`` is none of ours, and is not read."""

_JOIN: Final = "~"
_ENTRY: Final = re.compile(r"([A-Za-z0-9_-]{11})\.([0-9a-z]{1,11})", re.ASCII)
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=4096)
def group_hash(group: str) -> str:
    """Return the 11 characters that stand for a group in a position."""
    return urlsafe_b64encode(blake2b(group.encode(), digest_size=8).digest())[:11].decode()


def format_position(numbers: Mapping[str, int]) -> str:
    """Return the id that says how far a stream has got: the last number of each group."""
    return _JOIN.join(f"{group_hash(group)}.{_base36(number)}" for group, number in numbers.items())


def parse_position(last_event_id: str, groups: Iterable[str]) -> dict[str, int]:
    """Return the numbers that a client's ``Last-Event-ID`` has for these groups.

    Never raises, whatever was sent. Entries of other groups and malformed ones are ignored; of
    several for one group the first counts.
    """
    if len(last_event_id) > MAX_BYTES:
        return {}
    numbers: dict[str, int] = {}
    for entry in last_event_id.split(_JOIN):
        if match := _ENTRY.fullmatch(entry):
            numbers.setdefault(match[1], int(match[2], 36))
    return {group: numbers[key] for group in groups if (key := group_hash(group)) in numbers}


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
