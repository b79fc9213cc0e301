"""What is wrong with a request, as problem details: RFC 9457."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from django.http import HttpResponse

# An error may quote what the client has sent.
_LONGEST_DETAIL: Final = 500

_CHALLENGE: Final = 'Bearer realm="publish"'


class Problem(Exception):
    """Why a request is refused.

    Args:
        status: The status of the answer.
        detail: What is wrong, and what would be accepted.
        headers: More headers of the answer.
        members: Where it is wrong: ``line`` and ``field``, if they are known.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        self.status = status
        self.detail = detail[:_LONGEST_DETAIL]
        self.headers = headers or {}
        self.members = {name: value for name, value in members.items() if value is not None}
        super().__init__(detail)

    def response(self) -> HttpResponse:
        """Return the answer."""
        title = HTTPStatus(self.status).phrase
        problem = {"title": title, "status": self.status, "detail": self.detail, **self.members}
        return HttpResponse(
            json.dumps(problem),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )


def unauthorized(detail: str, *, error: str = "") -> Problem:
    """Return the problem of who shows no token that counts: RFC 6750, section 3.

    Args:
        detail: What is wrong.
        error: The code of the challenge; "" for a request without a token.
    """
    challenge = f'{_CHALLENGE}, error="{error}"' if error else _CHALLENGE
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def forbidden(detail: str, **members: Any) -> Problem:
    """Return the problem of a token that does not cover what is published."""
    challenge = f'{_CHALLENGE}, error="insufficient_scope"'
    return Problem(403, detail, headers={"WWW-Authenticate": challenge}, **members)
