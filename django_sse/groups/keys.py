"""The library's signing keys, derived from the project's ``SECRET_KEY``.

They sign what returns through places where others can write: clients' positions, and the messages
of a channel layer.
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
        purpose: What is signed. A signature for one purpose is not valid for another.

    Raises:
        ImproperlyConfigured: The project has no ``SECRET_KEY``.
    """
    return _derived(purpose, settings.SECRET_KEY)


def accepted_keys(purpose: str) -> list[bytes]:
    """Return the keys whose signatures are valid, including those of ``SECRET_KEY_FALLBACKS``.

    Args:
        purpose: What is signed.

    Raises:
        ImproperlyConfigured: The project has no ``SECRET_KEY``.
    """
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return [_derived(purpose, secret) for secret in secrets]


def signature(key: bytes, message: bytes) -> bytes:
    """Return the HMAC-SHA-256 of a message (RFC 2104): 32 bytes."""
    # Setting up a key takes longer than the rest, and each event is signed.
    signing = _keyed(key).copy()
    signing.update(message)
    return signing.digest()


@lru_cache(maxsize=64)
def _keyed(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod=_HASH)


@lru_cache(maxsize=64)
def _derived(purpose: str, secret: str | bytes) -> bytes:
    return signature(force_bytes(secret), f"django_sse {purpose}".encode())
