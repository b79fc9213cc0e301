"""Ends of owners' streams that a store could not write. This process keeps and retries them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock, Thread
from typing import Final, Protocol

from django.db import connections

from django_sse.concurrency.forks import forget_in_child
from django_sse.conf import conf
from django_sse.groups.entries import NewEntry, Ring
from django_sse.logs import logger
from django_sse.stores.clock import StoreClock

# The pause between two attempts, in seconds: the first one, and the longest, to which it grows.
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 4.0
# Ends that are written in one call.
_BATCH: Final = 100
# The most bytes that are kept, and what an end takes besides its wire.
_MOST_BYTES: Final = 16 * 1024 * 1024
_END_BYTES: Final = 512


class Store(Protocol):
    """The part of an event store that writing ends needs."""

    using: str
    clock: StoreClock

    def append(self, entries: Sequence[NewEntry], ring: Ring) -> object:
        """Append entries and call ``ring``."""


class WriteRetries:
    """Keeps ends for ``CANCEL_TTL``, and writes them in a thread that runs while any are left."""

    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Begin anew in the child of a fork. The parent writes what it has kept."""
        self._lock = Lock()
        # By store and owner key, in the order in which they came.
        self._ends: dict[tuple[Store, str], NewEntry] = {}
        self._bytes = 0
        self._rings: dict[Store, Ring] = {}
        self._is_writing = False

    def keep(self, store: Store, ends: Sequence[NewEntry], ring: Ring) -> None:
        """Keep ends until they are written.

        Args:
            store: The store that could not write them.
            ends: The ends, each with the time when it was ordered.
            ring: Tells the hubs about the ends once they are written.
        """
        if not ends:
            return
        lost = 0
        with self._lock:
            for end in ends:
                kept = self._ends.get((store, end.group))
                if kept is None or kept.at < end.at:
                    self._drop(store, end.group)
                    self._ends[store, end.group] = end
                    self._bytes += _size(end)
            while self._bytes > _MOST_BYTES:
                self._drop(*next(iter(self._ends)))
                lost += 1
            self._rings[store] = ring
            begins = bool(self._ends) and not self._is_writing
            self._is_writing |= begins
        if lost:
            logger.error("%d ends of streams are lost: there were too many to keep.", lost)
        if begins:
            logger.warning("Ends of streams could not be written. They are tried again.")
            writer = Thread(
                target=self._write_until_done, name="django-sse-write-retries", daemon=True
            )
            try:
                writer.start()
            except RuntimeError:
                # No thread could be started. The next end that is kept tries again.
                logger.exception("Ends of streams cannot be tried again now.")
                with self._lock:
                    self._is_writing = False

    def take_back(self, store: Store, owner_keys: Sequence[str]) -> None:
        """Forget the ends of these owners, who are let in again."""
        with self._lock:
            for owner_key in owner_keys:
                self._drop(store, owner_key)

    def _write_until_done(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            # `time.sleep`, since gevent and eventlet may replace it after this module's import.
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._write()
            with self._lock:
                if not self._ends:
                    self._rings.clear()
                    self._is_writing = False
                    return

    def _write(self) -> None:
        self._drop_expired()
        with self._lock:
            stores = {store for store, _ in self._ends}
        for store in stores:
            # Whatever fails, `append` keeps the ends again, and this thread goes on.
            with suppress(BaseException):
                _ensure_autocommit(store.using)
                while ends := self._take(store):
                    store.append(ends, self._rings[store])
                    logger.info("%d ends of streams were written at last.", len(ends))
        with suppress(BaseException):
            connections.close_all()

    def _drop_expired(self) -> None:
        ttl = conf().CANCEL_TTL
        with self._lock:
            expired = [
                (store, owner_key)
                for (store, owner_key), end in self._ends.items()
                if end.at / 1_000_000 < store.clock.known() - ttl
            ]
            for key in expired:
                self._drop(*key)
        if expired:
            logger.error("%d ends of streams are lost: the store was unavailable.", len(expired))

    def _take(self, store: Store) -> list[NewEntry]:
        with self._lock:
            owner_keys = [owner_key for other, owner_key in self._ends if other is store][:_BATCH]
            return [end for owner_key in owner_keys if (end := self._drop(store, owner_key))]

    def _drop(self, store: Store, owner_key: str) -> NewEntry | None:
        end = self._ends.pop((store, owner_key), None)
        self._bytes -= _size(end) if end else 0
        return end


def _ensure_autocommit(using: str) -> None:
    # The connection belongs to this thread, and has none of the project's transactions.
    connection = connections[using]
    if not connection.settings_dict["AUTOCOMMIT"]:
        connection.set_autocommit(True)


def _size(end: NewEntry) -> int:
    return len(end.wire) + _END_BYTES


write_retries: Final = WriteRetries()
