"""What a row says beside its text: a margin, and the fields by which results are broken down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guerdon.data import RowError
from guerdon.trainer.common.errors import DataError

NONE = "(none)"
"""The group of rows that lack the field."""


def number(row: Mapping[str, Any], field: str) -> float:
    """A finite number of a row.

    Raises:
        RowError: it is missing, no number, or not finite.
    """
    if row.get(field) is None:
        raise RowError(field, "is missing")
    return finite(row[field], field)


def finite(value: Any, field: str) -> float:
    """A value as a finite number.

    Raises:
        RowError: it is none; a truth value is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(field, f"is {value!r}, it must be a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise RowError(field, f"is {value!r}, it must be a finite number")
    return found


def read_margin(row: Mapping[str, Any], field: str) -> float:
    """The margin by which the better answer of a row is better.

    Raises:
        RowError: it is no finite number, or below 0, which would prefer the other answer.
    """
    found = number(row, field)
    if found < 0:
        raise RowError(field, f"is {found:g}, it must not be below 0")
    return found


def group_values(row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, str]:
    """The row's value of each field, as text.

    Raises:
        RowError: a value is neither text, nor a number, nor a truth value.
    """
    found = {}
    for field in fields:
        value = row.get(field)
        if value is not None and not isinstance(value, str | int | float):
            raise RowError(
                field, "must be text, a number or true/false, to break results down by it"
            )
        found[field] = NONE if value is None else str(value)
    return found


def measured_by_group(
    groups: Mapping[str, Mapping[str, list[int]]], of: Callable[[list[int]], dict[str, Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """What is measured of the rows of each group, by field and value.

    Args:
        groups: as `places_by_group` gives them.
        of: measures the rows at some places.
    """
    return {
        field: {value: of(places) for value, places in parts.items()}
        for field, parts in groups.items()
    }


def places_by_group(
    source: str, fields: Sequence[str], groups: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, list[int]]]:
    """The places of the rows that have a value, by field and value.

    Args:
        source: of the rows, for the message.
        fields: what to break down by.
        groups: of each row, as `group_values` gives them.

    Raises:
        DataError: no row has the field.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for field in fields:
        parts: dict[str, list[int]] = {}
        for place, group in enumerate(groups):
            parts.setdefault(group[field], []).append(place)
        if set(parts) <= {NONE}:
            raise DataError(f"{source}: no row has the field {field!r} (--by)")
        found[field] = dict(sorted(parts.items()))
    return found
