"""Keys of the library's own, derived from the project's ``SECRET_KEY``.

They sign what comes back from where others may write: a client's position, a channel layer's
messages.
"""

import hmac
from functools import lru_cache
from typing import Final

from django.conf import settings
from django.utils.encoding import force_bytes

_HASH: Final = "sha256"


def signing_key(purpose: str) -> bytes:
    """Return the key to sign with.

    Args:
        purpose: What is signed; what one key has signed is worth nothing elsewhere.

    Raises:
        ImproperlyConfigured: The project has no ``SECRET_KEY``.
    """
    return _derived(purpose, settings.SECRET_KEY)


def accepted_keys(purpose: str) -> list[bytes]:
    """Return the keys whose signatures hold: also those of ``SECRET_KEY_FALLBACKS``.

    Raises:
        ImproperlyConfigured: The project has no ``SECRET_KEY``.
    """
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return [_derived(purpose, secret) for secret in secrets]


def signature(key: bytes, message: bytes) -> bytes:
    """Return the 32 bytes of a message's HMAC: RFC 2104, with SHA-256."""
    return hmac.digest(key, message, _HASH)


@lru_cache(maxsize=64)
def _derived(purpose: str, secret: str | bytes) -> bytes:
    return signature(force_bytes(secret), f"django_sse {purpose}".encode())
