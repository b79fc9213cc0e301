"""JSON Schemas as TypeScript."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from django_sse.schemas import REFERENCE, Schema

_NAME: Final = re.compile(r"[A-Za-z_$][\w$]*", re.ASCII)
_PRIMITIVES: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}


def declaration(name: str, schema: Schema) -> str:
    """Return the exported declaration of a type."""
    written = type_of(schema)
    if "properties" in schema:
        return f"export interface {identifier(name)} {written}\n"
    return f"export type {identifier(name)} = {written};\n"


def members(types: Mapping[str, str], optional: frozenset[str] = frozenset()) -> str:
    """Return the body of an interface, given the types of its members."""
    lines = []
    for name, kind in types.items():
        key = name if _NAME.fullmatch(name) else json.dumps(name)
        mark = "?" if name in optional else ""
        lines.append(f"{key}{mark}: {kind};\n")
    body = "".join(lines).rstrip("\n").replace("\n", "\n  ")
    return f"{{\n  {body}\n}}" if body else "{}"


def identifier(name: str) -> str:
    """Return a definition's name as TypeScript can write it."""
    return re.sub(r"[^\w$]", "_", name, flags=re.ASCII)


def type_of(schema: Any) -> str:
    """Return the type of what a JSON Schema describes; ``unknown`` of what has none."""
    match schema:
        case {"$ref": str(reference)}:
            return identifier(reference.removeprefix(REFERENCE))
        case {"const": value}:
            return json.dumps(value)
        case {"enum": [*values]}:
            return _union([json.dumps(value) for value in values])
        case {"anyOf": [*kinds]} | {"oneOf": [*kinds]}:
            return _union([type_of(kind) for kind in kinds])
        case {"allOf": [*kinds]}:
            return " & ".join(f"({type_of(kind)})" for kind in kinds)
        case {"type": [*names]}:
            return _union([type_of({**schema, "type": name}) for name in names])
        case {"prefixItems": [*items]}:
            return f"[{', '.join(type_of(item) for item in items)}]"
        case {"type": "array"}:
            return f"Array<{type_of(schema.get('items'))}>"
        case {"properties": dict(properties)}:
            return members(
                {name: type_of(kind) for name, kind in properties.items()},
                frozenset(properties) - frozenset(schema.get("required", ())),
            )
        case {"type": "object", "additionalProperties": dict(kind)}:
            return f"Record<string, {type_of(kind)}>"
        case {"type": "object"}:
            return "Record<string, unknown>"
        case {"type": str(name)}:
            return _PRIMITIVES.get(name, "unknown")
    return "unknown"


def _union(kinds: list[str]) -> str:
    return " | ".join(dict.fromkeys(kinds)) or "never"
