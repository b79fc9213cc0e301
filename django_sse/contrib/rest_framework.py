"""Streams of groups as endpoints of Django REST framework."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.exceptions import (
    APIException,
    AuthenticationFailed,
    MethodNotAllowed,
    NotAcceptable,
    NotAuthenticated,
)
from rest_framework.renderers import BaseRenderer, BrowsableAPIRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from django_sse.access.logins import check_session, renew_login, take_user
from django_sse.access.owners import is_nobody, owner_key_of
from django_sse.conf import conf
from django_sse.http.base_view import copy_of_request
from django_sse.http.cors import is_preflight, preflight_answer
from django_sse.http.refusals import is_refused_softly
from django_sse.http.response import EventStreamResponse, no_store, throttled
from django_sse.mixins import AccessMixin
from django_sse.streaming.permission_rechecks import CredentialsEndedError
from django_sse.views import EventStreamView

if find_spec("drf_spectacular"):
    # It registers itself.
    from django_sse.contrib import spectacular  # noqa: F401

_PAGE: Final = "django_sse/rest_framework.html"
# What REST framework has found out about a request before it authenticates.
_NEGOTIATED: Final = (
    *("accepted_renderer", "accepted_media_type"),
    *("version", "versioning_scheme"),
)


class _EventStreamRenderer(BaseRenderer):  # type: ignore[misc]
    """Stands for the stream where REST framework chooses what a client gets."""

    media_type = "text/event-stream"
    format = "event-stream"
    charset = None


class EventStreamAPIView(EventStreamView, APIView):  # type: ignore[misc]
    """Streams the events of Channels groups to whom Django REST framework lets in.

    Its authentication, permissions, throttles, version and content negotiation come before the
    stream, and it renders the refusals. Authentication and permissions are asked again every
    ``RECHECK_INTERVAL`` while the stream is open.

    ``self.request`` is Django's, with REST framework's ``user``, ``auth`` and ``version``.
    ``check_object_permissions`` blocks: call it by ``sync_to_async``, in ``authorize`` and in
    ``still_allowed``.
    """

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view.

        Raises:
            ImproperlyConfigured: The view has a mixin of ``django_sse.mixins``, or
                ``resume_seconds``; or as for ``EventStreamView``.
        """
        if issubclass(cls, AccessMixin):
            raise ImproperlyConfigured(
                f"{cls.__name__} has a mixin of django_sse.mixins, which does not see the user of "
                "REST framework: use `permission_classes`."
            )
        if initkwargs.get("resume_seconds", cls.resume_seconds):
            raise ImproperlyConfigured(
                f"{cls.__name__} has `resume_seconds`, with which streams are resumed without "
                "asking REST framework. Remove it."
            )
        return super().as_view(**initkwargs)

    # HTTP

    async def dispatch(  # type: ignore[override]
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Answer the request if REST framework lets it in, and let it render what it refuses."""
        if is_preflight(request):
            return preflight_answer(request)
        # Authentication sets another user, which a later one must not take for the session's.
        self._unauthenticated = copy_of_request(request)
        response = await sync_to_async(self._begin)(request)
        if response is None:
            handler = getattr(self, (request.method or "").lower())
            response = await handler(request, *args, **kwargs)
        response = await sync_to_async(self._finish)(response)
        if response.status_code == 429 and is_refused_softly(
            request.method, request.headers.get("Accept", "")
        ):
            seconds = response.headers.get("Retry-After", "")
            return throttled(request, int(seconds) if seconds.isdecimal() else 0)
        return response

    def _begin(self, request: HttpRequest) -> Any:
        """Return the answer of REST framework, or None if the client may have the stream."""
        self.headers = self.default_response_headers
        api_request = self.initialize_request(request, *self.args, **self.kwargs)
        self.request = self._api_request = api_request
        try:
            self.initial(api_request, *self.args, **self.kwargs)
            # Views may put authentication off.
            self._user_key = _key_of(api_request.user)
            method = api_request.method.lower()
            if method not in self.http_method_names or not hasattr(self, method):
                raise MethodNotAllowed(api_request.method)
            if method == "options":
                return self.options(api_request, *self.args, **self.kwargs)
            if method in ("get", "head"):
                renderer = api_request.accepted_renderer
                if isinstance(renderer, BrowsableAPIRenderer):
                    return self._page(renderer)
                if not isinstance(renderer, _EventStreamRenderer):
                    raise NotAcceptable(available_renderers=self.get_renderers())
        except Exception as error:
            return self.handle_exception(error)
        self.request = _djangos(api_request)
        return None

    def _page(self, renderer: Any) -> Any:
        """Return the page that shows the stream in a browser."""
        if renderer.template == BrowsableAPIRenderer.template:
            renderer.template = _PAGE
        return Response({"events": list(self.event_types)})

    def _finish(self, response: HttpResponseBase) -> HttpResponseBase:
        if isinstance(response, Response):
            # For the renderer.
            self.request = self._api_request
        finished: HttpResponseBase = self.finalize_response(
            self._api_request, response, *self.args, **self.kwargs
        )
        if not isinstance(finished, EventStreamResponse):
            no_store(finished)
        return finished

    async def _told(self, answer: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        async def told_by_framework() -> HttpResponseBase:
            try:
                return await answer
            except (APIException, Http404, PermissionDenied) as error:
                return await sync_to_async(self._refuse)(error)

        return await super()._told(told_by_framework())

    def _refuse(self, error: Exception) -> HttpResponseBase:
        self.request = self._api_request
        refusal: HttpResponseBase = self.handle_exception(error)
        return refusal

    # What views of REST framework have

    @property
    def allowed_methods(self) -> list[str]:
        """The methods that are answered."""
        methods: list[str] = super().allowed_methods
        return [name for name in methods if name != "DELETE" or self.stoppable]

    def get_renderers(self) -> list[Any]:
        """Return the renderers, the stream's first."""
        return [_EventStreamRenderer(), *super().get_renderers()]

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the response as it is sent. What is no stream has another renderer."""
        accepted = getattr(request, "accepted_renderer", None)
        if isinstance(response, Response) and (
            accepted is None or isinstance(accepted, _EventStreamRenderer)
        ):
            others = self.get_renderers()[1:] or [JSONRenderer()]
            chosen = others[0], others[0].media_type
            with suppress(APIException, Http404):
                format_kwarg = getattr(self, "format_kwarg", None)
                negotiator = self.get_content_negotiator()
                chosen = negotiator.select_renderer(request, others, format_kwarg)
            request.accepted_renderer, request.accepted_media_type = chosen
        return super().finalize_response(request, response, *args, **kwargs)

    def check_object_permissions(self, request: Any, obj: Any) -> None:
        """Check the permissions for an object, given ``self.request``."""
        super().check_object_permissions(self._api_request, obj)

    # While the stream is open

    def _is_rechecked(self) -> bool:
        return conf().RECHECK_INTERVAL > 0

    async def _is_still_allowed(self) -> bool:
        renew_login(self._unauthenticated)
        await check_session(self._unauthenticated)
        try:
            await sync_to_async(self._ask_again)()
            return await self.still_allowed()
        except (NotAuthenticated, AuthenticationFailed) as error:
            raise CredentialsEndedError from error
        except APIException as error:
            if error.status_code >= 500:
                raise OSError("REST framework could not be asked.") from error
            raise PermissionDenied from error
        except Http404 as error:
            raise PermissionDenied from error

    def _ask_again(self) -> None:
        """Authenticate the request anew, and ask whether it is permitted.

        Raises:
            APIException: It is not.
        """
        request = copy_of_request(self._unauthenticated)
        before = self._api_request
        api_request = self.initialize_request(request, *self.args, **self.kwargs)
        for name in _NEGOTIATED:
            setattr(api_request, name, getattr(before, name))
        self.request = self._api_request = api_request
        self.perform_authentication(api_request)
        if _key_of(api_request.user) != self._user_key:
            raise AuthenticationFailed
        self.check_permissions(api_request)
        self.request = _djangos(api_request)


def _djangos(api_request: Request) -> HttpRequest:
    """Return Django's request, with what REST framework has found out."""
    request: Any = api_request._request
    request.version = api_request.version
    request.versioning_scheme = api_request.versioning_scheme
    take_user(request)
    return request  # type: ignore[no-any-return]


def _key_of(user: Any) -> Any:
    """Return what tells a user from all others, as far as anything does."""
    try:
        # A user without a key is told apart by its own `__eq__`.
        return owner_key_of(user) or (None if is_nobody(user) else user)
    except (TypeError, ValueError):
        return user
