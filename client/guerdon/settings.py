"""Settings dataclasses from TOML and the command line, and back. Loads nothing heavy.

A settings class is a frozen dataclass whose fields are strings, paths, numbers, booleans, choices
(`Literal` or an enumeration), tuples of those, one of them `| None`, or tables: other such
dataclasses, and mappings. The class itself refuses values that can't be, with a `ValueError` or a
`SettingsError`; here keys and types are checked, so that every message names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

S = TypeVar("S")

_MOST = 2**63 - 1
"""The largest whole number that TOML promises to hold; a float can hold it too."""


class SettingsError(Exception):
    """A setting is unknown or has a value that can't be; the text is one plain sentence."""


def field_types(kind: type[Any]) -> Mapping[str, Any]:
    """Each field's type, in the order of the fields."""
    return _field_types(cast(Hashable, kind))


@functools.cache  # all hints of a class are evaluated for each of its fields otherwise
def _field_types(kind: Hashable) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    found = {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, kind))}
    return types.MappingProxyType(found)


def required(kind: type[Any]) -> list[str]:
    """The fields that have no default."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def load(
    kind: type[S], file: Path | None, flags: Mapping[str, Any], *, merged: Collection[str] = ()
) -> S:
    """The settings of a TOML file with the command line's values over them.

    Args:
        kind: the dataclass.
        file: the TOML file, or None.
        flags: by the setting's name, `engine.dtype` for one in a table; None, and an empty list,
            mean not given.
        merged: tables of which a flag replaces entries of the same name only.

    Raises:
        SettingsError: the file can't be read, or a key or a value is wrong.
    """
    return build(kind, given(file, flags, merged=merged))


def given(
    file: Path | None, flags: Mapping[str, Any], *, merged: Collection[str] = ()
) -> dict[str, Any]:
    """What a TOML file and, over it, the command line say; arguments and errors as for `load`."""
    values = read_toml(file) if file else {}
    for name, value in flags.items():
        if value in (None, [], ()):
            continue
        table, _, key = name.rpartition(".")
        target = values.setdefault(table, {}) if table else values
        if not isinstance(target, dict):
            raise SettingsError(f"{table} must be a table")
        target[key] = {**target.get(key, {}), **value} if key in merged else value
    return values


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        SettingsError: it can't be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also of text that is not UTF-8, and of endless numbers
        raise SettingsError(f"{file} is not valid TOML: {error}") from error


def build(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """The settings of a table of values.

    Args:
        kind: the dataclass.
        where: the table's name, for messages.

    Raises:
        SettingsError: a key is unknown or missing, or a value is wrong.
    """
    kinds = field_types(kind)
    prefix = f"{where}." if where else ""
    filled = {}
    for key, value in without_retired(kind, values).items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"; did you mean {prefix + near[0]!r}?" if near else ""
            raise SettingsError(f"unknown setting {prefix + key!r}{hint}")
        filled[key] = typed(prefix + key, value, kinds[key])
    for name in required(kind):
        if not filled.get(name):
            option = name.replace("_", "-")
            raise SettingsError(
                f"{prefix}{name} is missing: give --{option} or set it in the config file"
            )
    try:
        return kind(**filled)
    except (ValueError, SettingsError) as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from error


def without_retired(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values but for those of keys that the settings class has retired.

    A class may have `retired`, a mapping of keys that it once took without using them to the only
    value that they could have. Settings files of older runs hold them.

    Raises:
        SettingsError: a retired key has another value.
    """
    retired: Mapping[str, object] = getattr(kind, "retired", {})
    for key in values.keys() & retired.keys():
        if values[key] != retired[key]:
            raise SettingsError(f"unknown setting {key!r}: it does nothing for this recipe")
    return {key: value for key, value in values.items() if key not in retired}


def refuse_idle(settings: Any, names: Sequence[str], *, used: object, because: str) -> None:
    """Refuse settings that were given a value and would do nothing.

    Args:
        settings: the dataclass.
        names: of its fields.
        used: whether they do anything; nothing is refused then.
        because: why they do nothing.

    Raises:
        SettingsError: one has another value than its default.
    """
    for field in dataclasses.fields(settings):
        if field.name in names and not used and getattr(settings, field.name) != field.default:
            raise SettingsError(f"{field.name} does nothing {because}")


def positive(settings: Any, *names: str) -> None:
    """Refuse settings, all of a dataclass where none is named, that are not positive and finite.

    Raises:
        SettingsError: one is not.
    """
    for name in names or [field.name for field in dataclasses.fields(settings)]:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise SettingsError(f"{name} is {value}, it must be positive")


def not_negative(settings: object, *names: str) -> None:
    """Refuse settings that must be 0 or more and finite.

    Raises:
        SettingsError: one is not.
    """
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise SettingsError(f"{name} is {value}, it must not be negative")


def typed(key: str, value: Any, kind: Any) -> Any:
    """The value, when it has the key's type; an integer may stand for a float.

    Raises:
        SettingsError: it has not.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # with None; the latter of a Literal
        inner = next(each for each in arguments if each is not types.NoneType)
        return None if value is None else typed(key, value, inner)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) or origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{key} must be a table")
        if origin is None:
            return build(kind, value, key)
        return {name: typed(f"{key}.{name}", part, arguments[1]) for name, part in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{key} is {value!r}, it must be a list")
        return tuple(typed(f"{key}[{i}]", part, arguments[0]) for i, part in enumerate(value))
    if origin is Literal:
        return _choice(key, value, arguments)
    if issubclass(kind, enum.Enum):
        return kind(_choice(key, value, [member.value for member in kind]))
    return _scalar(key, value, kind)


def _choice(key: str, value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise SettingsError(f"{key} is {value!r}, it must be one of {', '.join(known)}")
    return value


def _scalar(key: str, value: Any, kind: type[Any]) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _MOST:
            raise SettingsError(f"{key} is too large")
        value = float(value) if kind is float else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SettingsError(f"{key} is {value!r}, it must be of type {kind.__name__}")
    if isinstance(value, float) and math.isnan(value):
        raise SettingsError(f"{key} is nan, it must be a number")
    return value


def to_toml(settings: Any) -> str:
    """The settings as TOML; keys whose value is None are left out.

    `load` of it gives equal settings, for every value that a class without tables allows.
    """
    lines = [
        f"{field.name} = {_toml(getattr(settings, field.name))}"
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) is not None
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML one, but for DEL, which TOML wants escaped, and for JSON's
        # pairs of surrogates, which TOML does not know.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)
