"""Data as JSON text, by the encoder that ``DJANGO_SSE`` names."""

import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, NoReturn

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from django_sse.conf import SETTING, Conf, problems
from django_sse.exceptions import InvalidEvent

Encode = Callable[[Any], str]


class _NoSettingsError(ImproperlyConfigured):
    """There are no settings, and so no encoder of the project."""


_OPTIONS: Final[dict[str, Any]] = {
    "ensure_ascii": False,
    "allow_nan": False,
    "separators": (",", ":"),
}
_DJANGO: Final[Encode] = DjangoJSONEncoder(**_OPTIONS).encode


def as_json(data: Any) -> str:
    """Return data of the project as JSON.

    Raises:
        InvalidEvent: JSON cannot express it, or the project's encoder returned something else.
        ImproperlyConfigured: The project's encoder cannot be used.
    """
    try:
        encode = encoder()
    except _NoSettingsError:
        # A client of event streams need not be a Django project.
        encode = _DJANGO
    return _encoded(encode, data)


def as_own_json(data: Any) -> str:
    """Return what the library itself says as JSON, whatever the project's encoder is.

    Raises:
        InvalidEvent: JSON cannot express it.
    """
    return _encoded(_DJANGO, data)


def _encoded(encode: Encode, data: Any) -> str:
    try:
        return encode(data)
    except InvalidEvent:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(
            f"Event.data must be text or something that JSON can express: {error}"
        ) from error


@cache
def encoder() -> Encode:
    """Return the function that encodes data, as ``ENCODER`` says.

    Raises:
        ImproperlyConfigured: ``ENCODER`` names nothing that encodes.
    """
    if not (settings.configured or os.environ.get(ENVIRONMENT_VARIABLE)):
        raise _NoSettingsError
    value = getattr(settings, SETTING, {})
    if found := list(problems(value)):
        raise ImproperlyConfigured(" ".join(found))
    # Not `conf()`, which has to wait for the apps: modules encode what they send when imported.
    path = Conf(**value).ENCODER
    try:
        named: Any = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{SETTING}['ENCODER'] cannot be imported: {error}") from error
    if isinstance(named, type):
        if not issubclass(named, json.JSONEncoder):
            raise ImproperlyConfigured(
                f"{SETTING}['ENCODER'] is {path}, which is no subclass of json.JSONEncoder, and no "
                "function."
            )
        with_objects: Any = type(named.__name__, (_Objects, named), {})
        return with_objects(**_OPTIONS).encode  # type: ignore[no-any-return]
    if not callable(named):
        raise ImproperlyConfigured(
            f"{SETTING}['ENCODER'] is {path}, which is {type(named).__name__}: name a function, or "
            "a subclass of json.JSONEncoder."
        )
    return lambda data: _text_of(path, named(data))


class _Objects(json.JSONEncoder):
    """Encodes objects of classes with declared fields, as their libraries do."""

    def default(self, o: Any) -> Any:
        kind = type(o)
        if hasattr(kind, "__pydantic_serializer__"):
            # By alias, as in the JSON Schemas of pydantic.
            return kind.__pydantic_serializer__.to_python(o, mode="json", by_alias=True)
        if is_dataclass(kind):
            return {field.name: getattr(o, field.name) for field in fields(o)}
        if hasattr(kind, "__struct_fields__"):
            # Only msgspec knows what a struct renames, tags and leaves out.
            from msgspec import to_builtins

            return to_builtins(o, str_keys=True, enc_hook=self.default)
        if hasattr(kind, "__attrs_attrs__"):
            return {field.name: getattr(o, field.name) for field in kind.__attrs_attrs__}
        return super().default(o)


def _text_of(path: str, encoded: Any) -> str:
    """Return what a project's function has returned as text.

    Raises:
        InvalidEvent: It is not JSON.
    """
    try:
        text = encoded if isinstance(encoded, str) else str(encoded, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"{path} returned bytes that are not UTF-8: {error}") from error
    except TypeError as error:
        raise InvalidEvent(
            f"{path} returned {type(encoded).__name__}, not text or bytes."
        ) from error
    if "NaN" in text or "Infinity" in text:
        # Python reads them, and browsers do not.
        json.loads(text, parse_constant=_refuse_constant)
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        encoder.cache_clear()


setting_changed.connect(_forget)
