"""The project's channel layer, and whether it reaches other processes."""

from functools import lru_cache

from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer

from django_sse.tasks import logger


def default_layer() -> BaseChannelLayer | None:
    """Return the default channel layer, if there is one.

    One that cannot be made is logged, once: events are not lost without it.
    """
    try:
        return get_channel_layer()
    except Exception as error:
        _log_once(str(error))
        return None


def crossing_layer() -> BaseChannelLayer | None:
    """Return the default channel layer if it reaches other processes."""
    layer = default_layer()
    return None if type(layer) is InMemoryChannelLayer else layer


# Bounded: a layer may say it in other words each time.
@lru_cache(maxsize=8)
def _log_once(error: str) -> None:
    logger.error("The channel layer cannot be used; hubs will do without it: %s", error)
