"""The event store that ``DJANGO_SSE["STORE"]`` chooses."""

from functools import cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from django_sse.concurrency.forks import ForkSafeLock
from django_sse.conf import SETTING, conf
from django_sse.stores.base import EventStore

STORES: Final = {
    "database": "django_sse.stores.database.DatabaseStore",
    "memory": "django_sse.stores.memory.MemoryStore",
    "redis": "django_sse.stores.redis.RedisStore",
}


_making_lock = ForkSafeLock()


def get_store() -> EventStore:
    """Return the project's event store. Each process has one.

    Raises:
        ImproperlyConfigured: ``STORE`` names no event store, or the store rejects its options.
    """
    with _making_lock:
        return _make_store()


@cache
def _make_store() -> EventStore:
    chosen = conf().STORE
    backend, options = (
        (chosen, {}) if isinstance(chosen, str) else (chosen["BACKEND"], chosen.get("OPTIONS", {}))
    )
    try:
        store = import_string(STORES.get(backend, backend))(**options)
    except (ImportError, TypeError) as error:
        raise ImproperlyConfigured(
            f"{SETTING}['STORE'] names no usable store: {error}. Choose one of "
            f"{', '.join(STORES)}, or the dotted path of an EventStore."
        ) from error
    if not isinstance(store, EventStore):
        raise ImproperlyConfigured(
            f"{SETTING}['STORE'] names {backend}, which is not an EventStore."
        )
    return store


def forget_store(kind: type[EventStore] = EventStore) -> None:
    """Have the next caller of ``get_store`` make another one, if the store is of some kind."""
    with _making_lock:
        if _make_store.cache_info().currsize and isinstance(_make_store(), kind):
            _make_store.cache_clear()


def _forget_changed(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        _make_store.cache_clear()


setting_changed.connect(_forget_changed)
