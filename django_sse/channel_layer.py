"""The project's channel layer, and whether it reaches other processes."""

import logging

from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer

from django_sse.logs import log_once


def default_layer() -> BaseChannelLayer | None:
    """Return the default channel layer, if there is one.

    One that cannot be made is logged, once: events are not lost without it.
    """
    try:
        return get_channel_layer()
    except Exception as error:
        log_once(
            f"The channel layer cannot be used; hubs will do without it: {error}",
            level=logging.ERROR,
        )
        return None


def crossing_layer() -> BaseChannelLayer | None:
    """Return the default channel layer if it reaches other processes."""
    layer = default_layer()
    return None if type(layer) is InMemoryChannelLayer else layer
