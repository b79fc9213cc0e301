"""JSON Schemas of the types that views declare, as pydantic and msgspec write them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

Schema = dict[str, Any]
Schemas = tuple[list[Schema], dict[str, Schema]]
Library = Callable[[Sequence[Any], str], Schemas]

REFERENCE: Final = "#/$defs/"
"""What a reference to a definition begins with."""


def schemas_of(types: Sequence[Any], reference: str = REFERENCE) -> Schemas:
    """Return the JSON Schema of each type, and the definitions that they refer to, by name.

    Args:
        types: The types.
        reference: What a reference to a definition begins with, before its name.

    Raises:
        ImproperlyConfigured: There is no library that knows a type, or two types of the same name
            are known by different ones.
    """
    by_library: dict[Library, list[int]] = {}
    for place, kind in enumerate(types):
        by_library.setdefault(_library_of(kind), []).append(place)
    schemas: dict[int, Schema] = {}
    definitions: dict[str, Schema] = {}
    for library, places in by_library.items():
        found, defined = library([types[place] for place in places], reference)
        schemas |= zip(places, found, strict=True)
        for name, schema in defined.items():
            if definitions.setdefault(name, schema) != schema:
                raise ImproperlyConfigured(
                    f"pydantic and msgspec both know a type named {name}, and not the same one. "
                    "Rename one of them."
                )
    return [schemas[place] for place in range(len(types))], definitions


def _library_of(kind: Any) -> Library:
    """Return the function of the first library that knows a type.

    Raises:
        ImproperlyConfigured: No installed one does.
    """
    errors = []
    for library in (_by_pydantic, _by_msgspec):
        try:
            library([kind], REFERENCE)
        except ImportError:
            continue
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        else:
            return library
    why = " ".join(errors) or "Neither of them is installed."
    raise ImproperlyConfigured(
        f"There is no JSON Schema of {kind!r}. Install pydantic, which knows its own models, "
        "dataclasses and TypedDict, or msgspec, which knows its own structs, those and classes of "
        f"attrs. {why}"
    )


def _by_pydantic(types: Sequence[Any], reference: str) -> Schemas:
    from pydantic import TypeAdapter

    adapters = [(place, "serialization", TypeAdapter(kind)) for place, kind in enumerate(types)]
    found: Mapping[Any, Any]
    found, rest = TypeAdapter.json_schemas(
        adapters,  # type: ignore[arg-type]
        ref_template=reference + "{model}",
    )
    schemas = [found[place, "serialization"] for place in range(len(types))]
    return schemas, rest.get("$defs", {})


def _by_msgspec(types: Sequence[Any], reference: str) -> Schemas:
    from msgspec.json import schema_components

    schemas, definitions = schema_components(types, ref_template=reference + "{name}")
    return list(schemas), definitions
