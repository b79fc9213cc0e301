"""System checks: what would go wrong at run time, said by ``manage.py check``."""

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
from django_sse.groups.namespaces import named_by
from django_sse.stores import get_store
from django_sse.stores.memory import MemoryStore


@checks.register("django_sse")
def check_setting(**kwargs: Any) -> list[checks.CheckMessage]:
    """E001: ``DJANGO_SSE`` itself. E002: its store."""
    found = list(problems(getattr(settings, SETTING, {})))
    if found:
        return [checks.Error(problem, id="django_sse.E001") for problem in found]
    try:
        return get_store().check()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="django_sse.E002")]


@checks.register("django_sse")
def check_asgi(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """W001: WSGI alone. W002: an ASGI application that is not wrapped."""
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
            hint="Make it with django_sse.asgi.get_asgi_application, or put "
            "django_sse.asgi.EventStreamApplication round it. If it is wrapped further in, "
            "silence this check.",
            id="django_sse.W002",
        )


@checks.register("django_sse")
def check_channel_layer(**kwargs: Any) -> Iterable[checks.CheckMessage]:
    """W003: no channel layer. W004: nothing that another process could publish through."""
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
    """E007: what names tenants cannot be had. W006: django-tenants, without all that it takes."""
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
                hint=f'Name what is there, such as "mysite.tenants.{key.lower()}".',
                id="django_sse.E007",
            )
    if not apps.is_installed("django_tenants"):
        return
    if chosen.NAMESPACE is None:
        yield checks.Warning(
            "Tenants are not kept apart: what one of them publishes reaches the streams of the "
            "group of that name at every other one, and its user 7 is everybody's user 7.",
            hint=f"Leave {SETTING}['NAMESPACE'] out, and the schema is the namespace; or name a "
            "function that returns what tells tenants apart.",
            id="django_sse.W006",
        )
    elif chosen.NAMESPACE_CONTEXT is None:
        yield checks.Warning(
            "The users and sessions of open streams are looked for in the public schema, and so is "
            "what still_allowed asks for: those of tenants are taken for logged out.",
            hint=f"Set {SETTING}['NAMESPACE_CONTEXT'] to the path of a context manager that enters "
            "the tenant whose name it is given.",
            id="django_sse.W006",
        )
