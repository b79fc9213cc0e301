"""The views that publish what services send them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Protocol

from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from django_sse.contrib.http_publish.bodies import (
    FORM,
    JSON,
    NDJSON,
    Publication,
    from_form,
    from_json,
    from_ndjson,
    refuse_unpublishable,
)
from django_sse.contrib.http_publish.idempotency import AnsweredError, KeyedRequest
from django_sse.contrib.http_publish.mercure import check_keys, publisher_by_jwt
from django_sse.contrib.http_publish.problems import Problem, forbidden, unauthorized
from django_sse.contrib.http_publish.tokens import publisher_with
from django_sse.exceptions import (
    EventStreamError,
    GroupCancelled,
    InvalidEvent,
    PartlyPublished,
)
from django_sse.groups.namespaces import current_namespace
from django_sse.http.base_view import exempt_from_atomic_requests
from django_sse.http.refusals import STORE_AWAY, retry_after, told
from django_sse.http.response import PLAIN_TEXT, no_store
from django_sse.http.view_checks import check_value
from django_sse.publishing import Published, publish_many, publish_with
from django_sse.stores import get_store
from django_sse.streaming.tally import refusals

_VALUES: Final = ("max_body_bytes", "max_events", "remember_seconds", "jwt_algorithm")


class Publisher(Protocol):
    """Who publishes."""

    @property
    def id(self) -> str:
        """What tells them from others."""

    def covers(self, name: str) -> bool:
        """Return whether they may publish to a group or a topic."""


class PublishView(View):
    """Publishes what a service sends: an event as JSON, or several as NDJSON, all or none.

    A service shows a token that ``manage.py sse_token`` has made, which covers some groups. Only
    the header ``Authorization`` counts, and never a cookie. So the view is exempt from CSRF checks,
    and from Django's ``LoginRequiredMiddleware``. It works over ASGI and WSGI.
    """

    max_body_bytes: int = 1024 * 1024
    """Bytes that a body may have."""

    max_events: int = 1000
    """Events that a body may have."""

    remember_seconds: float = 24 * 3600
    """Seconds for which a request with an ``Idempotency-Key`` is remembered."""

    http_method_names = ["post"]

    _content_types: ClassVar[Sequence[str]] = (JSON, NDJSON)

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view.

        Raises:
            ImproperlyConfigured: A value is wrong.
        """
        for name in _VALUES:
            if hasattr(cls, name):
                check_value(cls, name, initkwargs.get(name, getattr(cls, name)))
        view = csrf_exempt(super().as_view(**initkwargs))
        view.login_required = False  # type: ignore[attr-defined]
        return exempt_from_atomic_requests(view)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Publish the events of the body, and answer with their ids."""
        try:
            return no_store(self._respond(self._publish()))
        except Problem as problem:
            response = problem.response()
            # Otherwise Django logs each 503 as an error, and mails it to the admins.
            response._has_been_logged = problem.status == 503  # type: ignore[attr-defined]
            return no_store(response)

    def _publish(self) -> str:
        publisher = self._authenticated()
        content_type = self._content_type()
        body = self._body()
        publications = self._publications(content_type, body)
        for each in publications:
            if not publisher.covers(each.name):
                raise forbidden(
                    f"The token does not cover the {each.field} {each.name!r}.",
                    line=each.line,
                    field=each.field,
                )
        key = self.request.headers.get("Idempotency-Key")
        try:
            with _store_away(self.request):
                if key is None:
                    return self._answer(publish_many(_events(publications)))
                return self._publish_once(
                    KeyedRequest(
                        get_store().using,
                        publisher.id,
                        key,
                        content_type.encode() + b"\n" + body,
                        self.remember_seconds,
                    ),
                    publications,
                )
        except GroupCancelled as error:
            place = next(each for each in publications if each.group == error.group)
            detail = f"The {place.field} {place.name!r} is cancelled: nothing is published."
            raise Problem(409, detail, line=place.line, field=place.field) from error
        except PartlyPublished as error:
            refusals.note(STORE_AWAY, error)
            names = {each.group: each.name for each in publications}
            raise Problem(
                503,
                "Some of the events are published. Send those of `failed` again, with another "
                "`Idempotency-Key`.",
                published=[names[group] for group in error.published],
                failed=[names[group] for group in error.failed],
            ) from error
        except InvalidEvent:
            refuse_unpublishable(publications)
            raise

    def _publish_once(self, request: KeyedRequest, publications: Sequence[Publication]) -> str:
        answer = ""

        def remember(published: list[Published]) -> None:
            nonlocal answer
            answer = self._answer(published)
            request.remember(answer)

        try:
            publish_with(_events(publications), request.claim, remember)
        except AnsweredError as answered:
            return answered.answer
        except Problem:
            raise
        except PartlyPublished:
            request.spend()
            raise
        except Exception:
            request.release()
            raise
        request.delete_expired()
        return answer

    def _authenticated(self) -> Publisher:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized("Send a token: `Authorization: Bearer ...`.")
        with _store_away(self.request):
            publisher = self._publisher(token.strip())
        if publisher is None:
            raise unauthorized("The token does not count, or not any more.", error="invalid_token")
        return publisher

    def _content_type(self) -> str:
        accepted = " or ".join(self._content_types)
        content_type = self.request.content_type or ""
        charset = (self.request.content_params or {}).get("charset", "utf-8").lower()
        encoding = self.request.headers.get("Content-Encoding", "identity").lower()
        if content_type not in self._content_types or charset != "utf-8" or encoding != "identity":
            raise Problem(
                415,
                f"Send {accepted}, in UTF-8 and not compressed.",
                headers={"Accept": ", ".join(self._content_types)},
            )
        return content_type

    def _body(self) -> bytes:
        # Not `body`, which reads all of what comes without a length.
        try:
            body = self.request.read(self.max_body_bytes + 1)
        except OSError as error:
            raise Problem(400, "The body could not be read.") from error
        if len(body) > self.max_body_bytes:
            raise Problem(413, f"The body is too large: send at most {self.max_body_bytes} bytes.")
        if not body and "Transfer-Encoding" in self.request.headers:
            # Over WSGI, Django reads no such body.
            raise Problem(411, "Send the length of the body, as Content-Length.")
        return body

    # What differs between formats

    def _publisher(self, token: str) -> Publisher | None:
        return publisher_with(token)

    def _publications(self, content_type: str, body: bytes) -> list[Publication]:
        return from_json(body) if content_type == JSON else from_ndjson(body, self.max_events)

    def _answer(self, published: Sequence[Published]) -> str:
        return json.dumps({"ids": [each.id for each in published]})

    def _respond(self, answer: str) -> HttpResponseBase:
        return HttpResponse(answer, content_type=JSON)


class MercurePublishView(PublishView):
    """Publishes the updates that publishers of Mercure send.

    The group of a topic is ``group_name(topic)``. https://mercure.rocks/spec#publication
    """

    jwt_keys: Sequence[str | bytes] = ()
    """Keys that verify the JWTs of publishers: secrets of 32 bytes or more, or public keys."""

    jwt_algorithm: str = "HS256"
    """The algorithm of these JWTs: ``HS256``, or ``RS256`` with public keys in PEM."""

    _content_types = (FORM,)

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view.

        Raises:
            ImproperlyConfigured: A value is wrong, or PyJWT is not installed.
        """
        view = super().as_view(**initkwargs)
        keys = initkwargs.get("jwt_keys", cls.jwt_keys)
        if not hasattr(keys, "__get__"):
            algorithm = initkwargs.get("jwt_algorithm", cls.jwt_algorithm)
            check_keys(cls.__name__, keys, algorithm)
        return view

    def _publisher(self, token: str) -> Publisher | None:
        # A JWT of another tenant does not count.
        audience = current_namespace() or None
        return publisher_by_jwt(token, self.jwt_keys, self.jwt_algorithm, audience)

    def _publications(self, content_type: str, body: bytes) -> list[Publication]:
        return from_form(body, self.max_events)

    def _answer(self, published: Sequence[Published]) -> str:
        # Of the first topic, the canonical one.
        return str(published[0].id)

    def _respond(self, answer: str) -> HttpResponseBase:
        return HttpResponse(answer, content_type=PLAIN_TEXT)


def _events(publications: Sequence[Publication]) -> list[tuple[str, Any]]:
    return [(each.group, each.event) for each in publications]


@contextmanager
def _store_away(request: HttpRequest) -> Iterator[None]:
    """Turn what fails beneath into a 503."""
    try:
        yield
    except (AnsweredError, EventStreamError, Problem):
        raise
    except (Http404, ImproperlyConfigured, PermissionDenied):
        # The project's function for tenants may say so.
        raise
    except Exception as error:
        refusals.note(STORE_AWAY, error)
        raise Problem(
            503,
            told(error) or "The event store is away. Send it again later.",
            headers={"Retry-After": str(retry_after())},
        ) from error
