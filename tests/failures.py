"""What fails in tests."""

from typing import Any

from django.core.cache.backends.locmem import LocMemCache


class Panic(BaseException):
    """What an extension raises that is no Python: pyo3's for a panic in Rust is no Exception."""


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
