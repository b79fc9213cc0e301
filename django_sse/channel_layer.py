"""The project's channel layer, and whether it reaches other processes."""

import logging

from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer

from django_sse.logs import log_once


def default_layer() -> BaseChannelLayer | None:
    """Return the default channel layer, or None if there is none.

    A layer that cannot be made is logged once. Events are not lost without it.
    """
    try:
        return get_channel_layer()
    except Exception as error:
        log_once(
            f"The channel layer cannot be used, so hubs work without it: {error}",
            level=logging.ERROR,
        )
        return None


def crossing_layer() -> BaseChannelLayer | None:
    """Return the default channel layer if it reaches other processes, else None."""
    layer = default_layer()
    return None if type(layer) is InMemoryChannelLayer else layer
