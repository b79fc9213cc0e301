"""Which channel layer reaches other processes."""

from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer

from django_sse.tasks import logger


def crossing_layer() -> BaseChannelLayer | None:
    """Return the default channel layer if it reaches other processes.

    One that cannot be made is logged: events are not lost without it.
    """
    try:
        layer = get_channel_layer()
    except Exception:
        logger.exception("The channel layer cannot be used; hubs will find out by themselves.")
        return None
    return None if type(layer) is InMemoryChannelLayer else layer
