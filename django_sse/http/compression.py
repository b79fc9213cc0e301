"""Compresses event streams, each chunk once for all streams that send it.

A stream is one gzip member (RFC 1952). Each of its chunks is a run of deflate blocks that refers to
nothing before it and ends at a byte (RFC 1951, 3.2.4), so all streams can send the same bytes, and
none of them needs a compressor of its own. Only the frame around the blocks is a stream's own.
"""

import re
import zlib
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from struct import pack
from typing import Any, Final

Send = Callable[[Any], Awaitable[None]]

# Deflate, without a name or a time, made on an unknown system: RFC 1952, 2.3.
_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# The last block, which is empty: RFC 1951, 3.2.6.
_LAST_BLOCK: Final = b"\x03\x00"
# The weight of a coding that is not acceptable: RFC 9110, 12.4.2.
_ZERO: Final = re.compile(rb"\s*q=0(\.0*)?\s*")


def accepts_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request's ``Accept-Encoding`` names gzip (RFC 9110, 12.5.3)."""
    for name, value in headers:
        if name.lower() == b"accept-encoding":
            for accepted in value.lower().split(b","):
                coding, _, weight = accepted.partition(b";")
                if coding.strip() == b"gzip" and not _ZERO.fullmatch(weight):
                    return True
    return False


class GzipSender:
    """Sends the body of one response as a gzip member."""

    __slots__ = ("_checksum", "_send", "_size")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._checksum = 0
        # In bytes, before compression; None until the header is sent.
        self._size: int | None = None

    async def send(self, message: Any) -> None:
        """Send a message of the response, with its part of the body compressed."""
        if message["type"] == "http.response.body":
            body = self._encoded(message.get("body", b""), message.get("more_body", False))
            message = {**message, "body": body}
        await self._send(message)

    def _encoded(self, chunk: bytes, more: bool) -> bytes:
        encoded = b""
        if self._size is None:
            encoded, self._size = _HEADER, 0
        if chunk:
            encoded += _deflated(chunk)
            self._checksum = zlib.crc32(chunk, self._checksum)
            self._size += len(chunk)
        if not more:
            encoded += _LAST_BLOCK + pack("<II", self._checksum, self._size % 2**32)
        return encoded


# Streams of one group send the same chunk one after the other. Few are kept, since they are large.
@lru_cache(maxsize=4)
def _deflated(chunk: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(chunk) + deflater.flush(zlib.Z_FULL_FLUSH)
