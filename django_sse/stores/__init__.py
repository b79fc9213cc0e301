"""The event store that ``DJANGO_SSE["STORE"]`` chooses."""

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


_making_lock: Final = ForkSafeLock()
_store: EventStore | None = None


def get_store() -> EventStore:
    """Return the project's event store. Each process has one.

    Raises:
        ImproperlyConfigured: ``STORE`` names no event store, or the store rejects its options.
    """
    # Without the lock where there is one: this is asked for each event.
    store = _store
    return _make_store() if store is None else store


def _make_store() -> EventStore:
    global _store
    with _making_lock:
        if _store is None:
            _store = _new_store()
        return _store


def _new_store() -> EventStore:
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
    global _store
    with _making_lock:
        if isinstance(_store, kind):
            _store = None


def _forget_changed(*, setting: str, **kwargs: Any) -> None:
    global _store
    if setting == SETTING:
        _store = None


setting_changed.connect(_forget_changed)
