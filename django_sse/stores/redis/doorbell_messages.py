"""The messages on the redis store's channels: written by ``script.lua``, read here.

A message is a signature, or nothing, a line end, and a hint as text. If there is a signature, an
empty line follows, and the new entries: each has a line with its number, whether it closes the
group and whom it excludes, and then its wire, which ends with an empty line.

Entries are signed: a user of Redis may be allowed all channels, but no key of the store. The script
signs, since it alone knows their numbers, so that no entry can be published again as another one.
The only hash that it has is SHA-1, which is used as HMAC does, with two secrets of one block each.
"""

import hmac
from hashlib import sha1
from typing import Final

from django.core.exceptions import ImproperlyConfigured

from django_sse.event import is_one_block_without_id
from django_sse.groups.entries import Entry, Hint
from django_sse.groups.keys import accepted_keys, signing_key

# The purposes of the two keys.
_INNER: Final = "redis doorbell, inner"
_OUTER: Final = "redis doorbell, outer"


class _Secret(str):
    """A text that nobody sees who is shown the locals of an error."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


def doorbell_secret() -> str:
    """Return what the script signs with: 128 characters, or none without a ``SECRET_KEY``, which a
    worker's settings may lack. Then it sends no entries."""
    try:
        return _Secret(signing_key(_INNER).hex() + signing_key(_OUTER).hex())
    except ImproperlyConfigured:
        return ""


def unsigned(hint: Hint) -> str:
    """Return the message of a hint, without its entries."""
    return f"\n{hint.encode()}"


def decode(channel: bytes, message: bytes) -> Hint:
    """Return the hint that a message on a channel carries.

    Entries without a valid signature are left out. They are read from the store instead.

    Raises:
        ValueError: The message is not a doorbell.
    """
    given, _, signed = message.partition(b"\n")
    head, *blocks = signed.split(b"\n\n")
    hint = Hint.decode(head.decode())
    if not blocks or not _is_signature(given, channel + b"\n" + signed):
        return hint
    # An empty line ends the last one.
    return hint._replace(entries=tuple(map(_entry, blocks[:-1])))


def _entry(block: bytes) -> Entry:
    line, _, wire = block.partition(b"\n")
    wire += b"\n\n"
    number, closes, exclude = line.decode().split(" ")
    if not is_one_block_without_id(wire):
        raise ValueError("The doorbell carries something that is not a valid event.")
    return Entry(int(number), wire, closes == "1", exclude)


def _is_signature(given: bytes, signed: bytes) -> bool:
    keys = zip(accepted_keys(_INNER), accepted_keys(_OUTER), strict=True)
    return any(hmac.compare_digest(given, _signature(*pair, signed)) for pair in keys)


def _signature(inner: bytes, outer: bytes, signed: bytes) -> bytes:
    return _hash(outer, _hash(inner, signed))


def _hash(key: bytes, text: bytes) -> bytes:
    return sha1(key.hex().encode() + text, usedforsecurity=False).hexdigest().encode()
