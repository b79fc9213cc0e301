"""Requests with an ``Idempotency-Key``: what comes again is published once and answered the same.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import re
import secrets
from hashlib import sha256
from typing import Final

from django.db.models import QuerySet

from django_sse.contrib.http_publish.problems import Problem
from django_sse.logs import log_seldom
from django_sse.models import PublishRequest
from django_sse.stores.clock import DatabaseTime, database_time

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")

# How long a request may publish, in seconds. Then whoever repeats it takes over: its process has
# died.
_LEASE_SECONDS: Final = 60
# How many expired requests each new one deletes. More than one, so that they get fewer.
_DELETED: Final = 10


class AnsweredError(Exception):
    """The request was published before."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        super().__init__()


class KeyedRequest:
    """A request with an idempotency key.

    Args:
        using: The database alias of the store.
        publisher: The id of who publishes: everybody has keys of their own.
        key: The value of the header ``Idempotency-Key``.
        content: What tells the request from others with the same key.
        seconds: How long its answer is remembered.

    Raises:
        Problem: The key is empty, too long, or no printable ASCII.
    """

    def __init__(
        self, using: str, publisher: str, key: str, content: bytes, seconds: float
    ) -> None:
        if not _KEY.fullmatch(key):
            raise Problem(400, "An Idempotency-Key has 1 to 255 printable ASCII characters.")
        self._using = using
        self._key = sha256(f"{publisher} {key}".encode()).hexdigest()
        self._body = sha256(content).hexdigest()
        self._claim = secrets.token_hex(16)
        self._seconds = seconds

    def claim(self) -> None:
        """Take the key, so that nobody else publishes with it.

        Raises:
            AnsweredError: The same was published with it.
            Problem: Something else was, or somebody is just publishing with it.
        """
        now = database_time(self._using)
        claimed = {
            "body": self._body,
            "claim": self._claim,
            "expires": now + _LEASE_SECONDS * 1_000_000,
        }
        # Inserted before anything is read: SQLite refuses the first write of a transaction if
        # another one has changed the database since its first read. A row that another transaction
        # has not committed yet is waited for.
        self._rows.bulk_create([PublishRequest(key=self._key, **claimed)], ignore_conflicts=True)
        row = self._rows.filter(key=self._key).first()
        if row and row.claim == self._claim:
            return
        if row is None:
            # Whoever had it has just released it.
            pass
        elif row.expires <= now:
            taken = self._rows.filter(key=self._key, claim=row.claim)
            if taken.update(**claimed, answer=""):
                return
        elif not row.body:
            raise Problem(
                422, "A part of this request was published. Send the rest with another key."
            )
        elif row.body != self._body:
            raise Problem(422, "This Idempotency-Key was used for another request.")
        elif row.answer:
            raise AnsweredError(row.answer)
        raise Problem(
            409,
            "The same request is being published just now.",
            headers={"Retry-After": "1"},
        )

    def remember(self, answer: str) -> None:
        """Keep the answer for who sends the request again."""
        expires = database_time(self._using) + int(self._seconds * 1_000_000)
        self._rows.filter(key=self._key, claim=self._claim).update(answer=answer, expires=expires)

    def release(self) -> None:
        """Let the request be sent again, unless it was published: the answer to a commit may have
        been lost."""
        try:
            self._rows.filter(key=self._key, claim=self._claim, answer="").delete()
        except Exception as error:
            log_seldom("A request that failed can be repeated in a minute only.", exc_info=error)

    def spend(self) -> None:
        """Let nothing be published with the key any more: a part of the request was, and would be
        a second time."""
        expires = database_time(self._using) + int(self._seconds * 1_000_000)
        self._rows.filter(key=self._key, claim=self._claim).update(body="", expires=expires)

    def delete_expired(self) -> None:
        """Delete some of the requests that are not remembered any more."""
        try:
            expired = self._rows.filter(expires__lt=DatabaseTime()).order_by("expires")
            keys = sorted(expired.values_list("key", flat=True)[:_DELETED])
            if keys:
                self._rows.filter(key__in=keys, expires__lt=DatabaseTime()).delete()
        except Exception as error:
            # The events are published.
            log_seldom("Old requests could not be deleted.", exc_info=error)

    @property
    def _rows(self) -> QuerySet[PublishRequest]:
        return PublishRequest.objects.using(self._using)
