"""JSON schemas that replies are held to: a part of the language, and all of that part is checked.

An endpoint may not keep to the schema that it is given, so each reply is checked here as well. A
schema with a keyword that would not be checked is refused at load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from guerdon.data.json_values import Fail, shown

_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}
"""Keywords that allow and refuse nothing."""
_KEYWORDS = {
    "type", "enum", "const", "minimum", "maximum", "properties", "required",
    "additionalProperties", "items",
}  # fmt: skip
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def check_schema(schema: Any, path: str, fail: Fail) -> None:
    """Refuse a schema that is none, or that has more than is checked here.

    Args:
        schema: JSON, without what JSON has not.
        path: of the schema, for errors.
        fail: makes the error.
    """
    if not isinstance(schema, Mapping):
        raise fail(path, "must be an object")
    for name in schema.keys() - _KEYWORDS - _NOTES:
        raise fail(f"{path}.{shown(name)}", "is a keyword that replies can't be checked by here")
    if schema.get("type") not in _TYPES:
        raise fail(f"{path}.type", f"must be one of {', '.join(_TYPES)}")
    for name in ("minimum", "maximum"):
        if name in schema and not _is_number(schema[name]):
            raise fail(f"{path}.{name}", "must be a number")
    scalars = schema.get("enum", []), [schema.get("const")]
    if not all(isinstance(s, list) and not any(map(_is_nested, s)) for s in scalars):
        raise fail(f"{path}.enum and const", "must be texts, numbers, true, false or null")
    _check_object(schema, path, fail)
    if "items" in schema:
        check_schema(schema["items"], f"{path}.items", fail)


def _check_object(schema: Mapping[str, Any], path: str, fail: Fail) -> None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise fail(f"{path}.properties", "must be an object")
    for name, each in properties.items():
        check_schema(each, f"{path}.properties.{shown(name)}", fail)
    if not isinstance(required, list) or any(name not in [*properties] for name in required):
        raise fail(f"{path}.required", "must be a list of names that `properties` has")
    if not isinstance(schema.get("additionalProperties", True), bool):
        raise fail(f"{path}.additionalProperties", "must be true or false")


def check_value(value: Any, schema: Mapping[str, Any], path: str, fail: Fail) -> None:
    """Refuse a value that its schema doesn't allow; quotes nothing of it.

    Args:
        value: JSON.
        schema: one that `check_schema` takes.
        path: of the value, for errors.
        fail: makes the error.
    """
    if not _is_type(value, schema["type"]):
        raise fail(path, f"is not of the type {schema['type']}")
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        raise fail(path, "is none of the values in its enum")
    if "const" in schema and not _same(value, schema["const"]):
        raise fail(path, "is not its const")
    if _is_number(value) and not (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
    ):
        raise fail(path, "is outside its range")
    if isinstance(value, Mapping):
        _check_members(value, schema, path, fail)
    if isinstance(value, list) and "items" in schema:
        for place, each in enumerate(value):
            check_value(each, schema["items"], f"{path}[{place}]", fail)


def _check_members(
    value: Mapping[str, Any], schema: Mapping[str, Any], path: str, fail: Fail
) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise fail(path, f"lacks {name!r}")
    if not schema.get("additionalProperties", True) and value.keys() - properties.keys():
        raise fail(path, "has a field that its schema has not")
    for name in value.keys() & properties.keys():
        check_value(value[name], properties[name], f"{path}.{name}", fail)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one to JSON, where true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_type(value: Any, name: str) -> bool:
    match name:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "number":
            return _is_number(value)
        case "integer":
            return _is_number(value) and (isinstance(value, int) or value.is_integer())
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None
