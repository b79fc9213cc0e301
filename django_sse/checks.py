"""System checks, so that ``manage.py check`` reports what would go wrong at run time."""

from collections.abc import Iterable
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.exceptions import InvalidChannelLayerError
from channels.layers import InMemoryChannelLayer, channel_layers
from channels.routing import ProtocolTypeRouter
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_sse.asgi import EventStreamApplication
from django_sse.conf import SETTING, conf, problems
from django_sse.encoding import encoder
from django_sse.groups.namespaces import named_by
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore


@checks.register("django_sse")
def check_setting(**kwargs: Any) -> list[checks.CheckMessage]:
    """E001: ``DJANGO_SSE`` is invalid. E002: its store cannot be made."""
    found = list(problems(getattr(settings, SETTING, {})))
    if found:
        return [checks.Error(problem, id="django_sse.E001") for problem in found]
    try:
        return get_store().check()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="django_sse.E002")]


@checks.register("django_sse")
def check_encoder(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """E008: ``ENCODER`` cannot be used."""
    if any(problems(getattr(settings, SETTING, {}))):
        # E001 says so.
        return
    try:
        encoder()
    except ImproperlyConfigured as error:
        yield checks.Error(
            str(error),
            hint='Name one that exists, such as "rest_framework.utils.encoders.JSONEncoder" or '
            '"orjson.dumps".',
            id="django_sse.E008",
        )


@checks.register("django_sse")
def check_asgi(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """W001: there is no ASGI application. W002: it is not wrapped."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if path is None:
        yield checks.Warning(
            "ASGI_APPLICATION is not set, and event streams are refused over WSGI.",
            hint="Set it to the path of an application made by "
            "django_sse.asgi.get_asgi_application, and serve the project over ASGI.",
            id="django_sse.W001",
        )
        return
    try:
        application = import_string(path)
    except Exception as error:
        yield checks.Warning(f"ASGI_APPLICATION cannot be imported: {error}", id="django_sse.W001")
        return
    if isinstance(application, ProtocolTypeRouter):
        application = application.application_mapping.get("http")
    if not isinstance(application, EventStreamApplication):
        yield checks.Warning(
            f"{path} is not wrapped in EventStreamApplication: each stream will keep a thread and "
            "a database connection.",
            hint="Make it with django_sse.asgi.get_asgi_application, or wrap it in "
            "django_sse.asgi.EventStreamApplication. If it contains an application that is already "
            "wrapped, silence this check.",
            id="django_sse.W002",
        )


@checks.register("django_sse")
def check_channel_layer(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """W003: there is no channel layer. W004: no other process can publish to the streams."""
    try:
        layer = channel_layers[DEFAULT_CHANNEL_LAYER]
    except (InvalidChannelLayerError, KeyError):
        yield checks.Warning(
            "There is no default channel layer: plain Channels messages cannot be streamed.",
            hint='Set CHANNEL_LAYERS = {"default": {"BACKEND": '
            '"channels.layers.InMemoryChannelLayer"}}, or one that crosses processes.',
            id="django_sse.W003",
        )
        return
    try:
        store = get_store()
    except ImproperlyConfigured:
        return
    if isinstance(store, MemoryStore) and type(layer) is InMemoryChannelLayer:
        yield checks.Warning(
            "The memory store and the in-memory channel layer both stay in their process: what "
            "a command, a worker or a second server process publishes reaches no stream.",
            hint='Use the database store, DJANGO_SSE = {"STORE": "database"}, if there is more '
            "than one process.",
            id="django_sse.W004",
        )


@checks.register("django_sse")
def check_namespace(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """E007: a function for tenants cannot be used. W006: django-tenants lacks one of them."""
    try:
        chosen = conf()
    except ImproperlyConfigured:
        # E001 says so.
        return
    for key in ("NAMESPACE", "NAMESPACE_CONTEXT"):
        try:
            named_by(key)
        except Exception as error:
            yield checks.Error(
                f"{SETTING}[{key!r}] cannot be used: {error}",
                hint=f'Name a function that exists, such as "mysite.tenants.{key.lower()}".',
                id="django_sse.E007",
            )
    if not apps.is_installed("django_tenants"):
        return
    if chosen.NAMESPACE is None:
        yield checks.Warning(
            "Tenants are not kept apart: what one tenant publishes to a group reaches the streams "
            "of that group in all tenants, and user 7 of one tenant is taken for user 7 of all.",
            hint=f"Remove {SETTING}['NAMESPACE'] to use the schema as the namespace, or name a "
            "function that returns a different text for each tenant.",
            id="django_sse.W006",
        )
    elif chosen.NAMESPACE_CONTEXT is None:
        yield checks.Warning(
            "The users and sessions of open streams are looked up in the public schema, and "
            "still_allowed queries it, too: users of tenants are taken for logged out.",
            hint=f"Set {SETTING}['NAMESPACE_CONTEXT'] to the path of a context manager that enters "
            "a tenant, given its name.",
            id="django_sse.W006",
        )
