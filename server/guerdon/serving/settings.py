"""Settings as frozen dataclasses, filled from TOML; unknown keys name the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

D = TypeVar("D")

_MOST = 2**53
"""Whole numbers beyond this are not exact as floating point."""


class SettingsError(ValueError):
    """The settings cannot be; the text is one plain sentence."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    try:
        with path.open("rb") as handle:
            return tomllib.load(handle)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also of text that is not UTF-8, and of endless numbers
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def build(kind: type[D], values: Mapping[str, Any], where: str = "") -> D:
    """A settings dataclass from a table; nested dataclasses are tables in it.

    Args:
        where: the table's name, for messages.

    Raises:
        SettingsError: a key is unknown, or a value has the wrong type or is refused
            by the dataclass.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise SettingsError(f"unknown setting {prefix}{key}{hint}")
        filled[key] = _coerce(hints[key], value, prefix + key)
    try:
        return kind(**filled)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where} must be a table")
        return build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        return _first(options, value, where)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return tuple(_coerce(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {k: _coerce(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where)


def _first(options: list[Any], value: Any, where: str) -> Any:
    for option in options[:-1]:
        try:
            return _coerce(option, value, where)
        except SettingsError:
            continue
    return _coerce(options[-1], value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        known = typing.get_args(hint)
        if value not in known:
            raise SettingsError(f"{where} is {value!r}, it must be one of {_listed(known)}")
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError as error:
            known = tuple(member.value for member in hint)
            raise SettingsError(
                f"{where} is {value!r}, it must be one of {_listed(known)}"
            ) from error
    if hint is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        value = _number(hint, value, where)
    if (
        not isinstance(hint, type)
        or not isinstance(value, hint)
        or (isinstance(value, bool) and hint is not bool)
    ):
        name = getattr(hint, "__name__", str(hint))
        raise SettingsError(f"{where} is {value!r}, it must be of type {name}")
    return value


def _number(hint: type, value: float, where: str) -> float:
    """A number of the hint's type as arithmetic can take it: no NaN, no overflow.

    Infinity is a number here: a setting that cannot be infinite refuses it itself.
    """
    too_large = isinstance(value, int) and abs(value) > _MOST
    if too_large or math.isnan(value):
        said = f"larger than {_MOST}" if too_large else "not a number"
        raise SettingsError(f"{where} is {said}, it cannot be used")
    return float(value) if hint is float else value


def _listed(known: tuple[Any, ...]) -> str:
    return ", ".join(str(k) for k in known)
