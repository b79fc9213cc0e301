"""What fails in tests."""

from typing import Any

from django.core.cache.backends.base import InvalidCacheKey, memcache_key_warnings
from django.core.cache.backends.locmem import LocMemCache


class Panic(BaseException):
    """What an extension raises that is no Python: pyo3's for a panic in Rust is no Exception."""


class DownCache(LocMemCache):
    """A cache that can be away, as that of a Redis that is down."""

    is_away = False

    def make_and_validate_key(self, *args: Any, **kwargs: Any) -> str:
        """Every method calls it first."""
        if self.is_away:
            raise ConnectionError("The cache is away.")
        return super().make_and_validate_key(*args, **kwargs)


class StrictCache(LocMemCache):
    """A cache that refuses keys, as that of memcached."""

    def validate_key(self, key: str) -> None:
        for warning in memcache_key_warnings(key):
            raise InvalidCacheKey(warning)


class SilentCache(LocMemCache):
    """A cache that does not say that it is away, as django-redis with IGNORE_EXCEPTIONS."""

    is_away = False

    def get(self, key: Any, default: Any = None, version: Any = None) -> Any:
        return default if self.is_away else super().get(key, default, version)

    def set(self, *args: Any, **kwargs: Any) -> None:
        if not self.is_away:
            super().set(*args, **kwargs)

    def has_key(self, key: Any, version: Any = None) -> bool:
        return not self.is_away and super().has_key(key, version)
