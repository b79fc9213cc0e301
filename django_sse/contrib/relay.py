"""Event streams of other servers, such as those of language models, to publish them."""

from collections.abc import AsyncIterable, AsyncIterator

from django_sse.event import RESERVED_NAMES, Decoder, Event


async def relayed(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield the events of a stream of another server, as a producer can publish them.

    They have no ids, since theirs are the other server's. A type that only EventSource or this
    library may use, such as ``error``, is left out: the event is then a ``message``.

    Args:
        chunks: The body of the other server's response, such as httpx's ``response.aiter_bytes()``.
    """
    decoder = Decoder()
    async for chunk in chunks:
        for event in decoder.feed(chunk):
            yield Event(event.data, event=None if event.event in RESERVED_NAMES else event.event)
