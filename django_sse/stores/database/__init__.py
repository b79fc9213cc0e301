"""The store in the project's database: promises what a transaction promises.

An event is stored exactly if its transaction is committed, and its number follows from the order of
the commits. Only ``django_sse.stores`` imports this package, by the store's path.
"""

from django_sse.stores.database.store import DatabaseStore

__all__ = ["DatabaseStore"]
