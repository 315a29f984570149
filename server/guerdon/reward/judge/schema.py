"""JSON schemas (draft 2020-12) that replies are held to, checked by `jsonschema`.

An endpoint may not keep to the schema that it is given, so each reply is checked here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from guerdon.data.json_values import Fail, shown

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MOST_PLACES = 16
"""Places of a path in errors: where a schema refers to itself, paths are as long as replies."""


class ReplySchema:
    """A JSON schema that refers to nothing but its own parts, ready to check replies.

    Args:
        schema: JSON, without what JSON has not.
        path: of the schema, for errors.
        fail: makes the error of a schema that is none, is of another draft or refers elsewhere.
    """

    def __init__(self, schema: Mapping[str, Any], path: str, fail: Fail) -> None:
        # Imported here, so that servers without judges do without.
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from referencing import Registry

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            place = _joined([path, *error.absolute_path])
            raise fail(place, "is not what JSON Schema (draft 2020-12) allows there") from None
        _check_references(schema, path, fail)
        # The default registry fetches what it doesn't have.
        self._validator = Draft202012Validator(schema, registry=Registry())

    def check(self, value: Any, path: str, fail: Fail) -> None:
        """Refuse a value that the schema doesn't allow; errors quote nothing of the value.

        Args:
            value: JSON.
            path: of the value, for errors.
            fail: makes the error.
        """
        try:
            error = next(self._validator.iter_errors(value), None)
        except (RecursionError, ArithmeticError):
            reason = "can't be checked by its schema: it is too deep, or has too large a number"
            raise fail(path, reason) from None
        if error is not None:
            place = _joined(error.absolute_schema_path)
            raise fail(path, f"does not satisfy `{place}` of its schema")


def _check_references(schema: Mapping[str, Any], path: str, fail: Fail) -> None:
    """Refuse parts of another draft or address, and references to anything but parts."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    parts = [schema]
    for part in parts:  # which grow meanwhile
        inner = DRAFT202012.subresources_of(part)
        parts += [each for each in inner if not isinstance(each, bool)]
    for part in parts:
        if part.get("$schema", _DRAFT).removesuffix("#") != _DRAFT:
            raise fail(f"{path}: $schema", f"must be {_DRAFT}")
        if "$id" in part and part is not schema:
            raise fail(f"{path}: $id", "may be that of the whole schema alone")
        for name in part.keys() & {"$ref", "$dynamicRef"}:
            what = f"{path}: {name} {shown(part[name])!r}"
            if not part[name].startswith("#"):
                raise fail(what, "must begin with #: nothing is fetched")
            try:
                found = resolver.lookup(part[name]).contents
            except (Unresolvable, ValueError):
                found = None
            if not isinstance(found, bool) and not any(found is each for each in parts):
                raise fail(what, "leads to no part of the schema that is a schema")


def _joined(places: Iterable[str | int]) -> str:
    names = [f"[{place}]" if isinstance(place, int) else f".{shown(place)}" for place in places]
    return "".join(names[-_MOST_PLACES:]).removeprefix(".")
