"""Settings dataclasses from TOML and the command line, and back. Loads nothing heavy.

A settings class is a frozen dataclass whose fields are strings, numbers, booleans, `Literal`
choices, tuples of those, or one of them `| None`. The class itself refuses values that can't be;
here keys and types are checked, so that every message names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from guerdon.cli.settings_options import field_types, required
from guerdon.trainer.common.errors import SettingsError

S = TypeVar("S")


def load(kind: type[S], config: Path | None, overrides: Mapping[str, Any]) -> S:
    """The settings of a TOML file with the command line's values over them.

    Args:
        kind: the dataclass.
        config: the file, or None.
        overrides: what was given on the command line; None, and an empty list, mean not given.

    Raises:
        SettingsError: the file can't be read, or a key or a value is wrong.
    """
    return build(kind, given(config, overrides))


def given(config: Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a TOML file and, over it, the command line say; arguments and errors as for `load`."""
    values = read_toml(config) if config else {}
    values.update({key: value for key, value in overrides.items() if value not in (None, [], ())})
    return values


def build(kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings of a table of values.

    Raises:
        SettingsError: a key is unknown or missing, or a value is wrong.
    """
    kinds = field_types(kind)
    filled = {}
    for key, value in without_retired(kind, values).items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"unknown setting {key!r}{hint}")
        filled[key] = typed(key, value, kinds[key])
    for name in required(kind):
        if not filled.get(name):
            option = name.replace("_", "-")
            raise SettingsError(f"{name} is missing: give --{option} or set it in the config file")
    return kind(**filled)


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


def read_toml(config: Path) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        SettingsError: it can't be read, or is not TOML.
    """
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"can't read the settings in {config}: {error}") from error


def to_toml(settings: Any) -> str:
    """The settings as TOML; keys whose value is None are left out.

    `load` of it gives equal settings, for every value that the class allows.
    """
    lines = [
        f"{field.name} = {_toml(getattr(settings, field.name))}"
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) is not None
    ]
    return "\n".join(lines) + "\n"


def typed(key: str, value: Any, kind: Any) -> Any:
    """The value, when it has the key's type; an integer may stand for a float.

    Raises:
        SettingsError: it has not.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise SettingsError(f"{key} is {value!r}, not {' or '.join(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{key} is {value!r}, it must be a list")
        return tuple(typed(f"{key}[{i}]", part, arguments[0]) for i, part in enumerate(value))
    allowed = arguments if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return _as_float(key, value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(t.__name__ for t in allowed if t is not types.NoneType)
        raise SettingsError(f"{key} is {value!r}, it must be of type {names}")
    return value


def _as_float(key: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise SettingsError(f"{key} is too large") from error


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
