"""Who may publish by the JWTs of Mercure: https://mercure.rocks/spec#authorization."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

_EVERYTHING: Final = "*"
_EXPRESSION: Final = re.compile(r"\{[A-Za-z0-9_.]+\}")
# What a simple expression expands to: RFC 6570, 3.2.2.
_EXPANDED: Final = r"(?:[A-Za-z0-9\-._~]|%[0-9A-Fa-f]{2})*"
# RFC 7518, 3.2.
_SHORTEST_SECRET: Final = 32
# That of the examples for Mercure's own hub.
_KNOWN_SECRET: Final = "!ChangeThisMercureHubJWTSecretKey!"  # noqa: S105


@dataclass(frozen=True, slots=True)
class JwtPublisher:
    """Who publishes with a JWT."""

    id: str
    selectors: Sequence[str]

    def covers(self, topic: str) -> bool:
        """Return whether one of the JWT's topic selectors matches a topic."""
        return any(matches(selector, topic) for selector in self.selectors)


def publisher_by_jwt(
    token: str, keys: Sequence[str | bytes], algorithm: str, audience: str | None
) -> JwtPublisher | None:
    """Return who publishes with a JWT, or None if it does not count.

    Args:
        token: The JWT.
        keys: The keys that may have signed it.
        algorithm: The only algorithm that counts, whatever the JWT says.
        audience: What its ``aud`` has to be; None if it must have none.
    """
    import jwt

    for key in keys:
        try:
            claims = jwt.decode(token, key, algorithms=[algorithm], audience=audience)
        except (jwt.PyJWTError, ValueError, RecursionError):
            continue
        return _publisher(claims, audience)
    return None


def matches(selector: str, topic: str) -> bool:
    """Return whether a topic selector matches a topic: ``*``, the topic, or a URI template.

    Of URI templates (RFC 6570) it knows simple expressions such as ``{id}``. One with any other
    expression matches nothing.
    """
    return selector in (_EVERYTHING, topic) or bool(_compiled(selector).fullmatch(topic))


def check_keys(view: str, keys: Any, algorithm: str) -> None:
    """Refuse keys that cannot be used.

    Raises:
        ImproperlyConfigured: PyJWT is not installed, there are no keys, or one is wrong.
    """
    try:
        import jwt
    except ImportError as error:
        raise ImproperlyConfigured(
            f"{view} needs PyJWT: pip install 'django-event-streams[mercure]'."
        ) from error
    if isinstance(keys, str | bytes) or not keys:
        raise ImproperlyConfigured(
            f"{view}.jwt_keys has to be a list of the keys that verify the publishers' JWTs."
        )
    for key in keys:
        try:
            jwt.get_algorithm_by_name(algorithm).prepare_key(key)
        except Exception as error:
            raise ImproperlyConfigured(
                f"{view}.jwt_keys has a key that is none for {algorithm}: {type(error).__name__}."
            ) from None
        is_short = algorithm == "HS256" and len(key) < _SHORTEST_SECRET
        if is_short or key in (_KNOWN_SECRET, _KNOWN_SECRET.encode()):
            raise ImproperlyConfigured(
                f"{view}.jwt_keys has a secret that can be guessed: make one of at least "
                f"{_SHORTEST_SECRET} random bytes."
            )


def _publisher(claims: dict[str, Any], audience: str | None) -> JwtPublisher | None:
    mercure = claims.get("mercure")
    selectors = mercure.get("publish") if isinstance(mercure, dict) else None
    if not isinstance(selectors, list) or not all(isinstance(each, str) for each in selectors):
        return None
    return JwtPublisher(repr((audience, claims.get("iss"), claims.get("sub"))), selectors)


@lru_cache(maxsize=1024)
def _compiled(selector: str) -> re.Pattern[str]:
    literals = _EXPRESSION.split(selector)
    if any("{" in literal or "}" in literal for literal in literals):
        return re.compile(r"(?!)")
    first, *others = map(re.escape, literals)
    # The first place of a literal will do, but for the last one, which has to be at the end. Atomic
    # groups keep long topics from taking long.
    between = "".join(f"(?>{_EXPANDED}?{literal})" for literal in others[:-1])
    return re.compile(first + between + (f"{_EXPANDED}{others[-1]}" if others else ""))
