"""The columns of rows, by the names that people give them."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_SHOWN = 10
"""Columns that are named where none is like the one that is missing."""


def missing(name: str, columns: Collection[str], option: str = "") -> str:
    """What to say of a column that a row lacks: the nearest of those that it has, or all of them.

    Args:
        name: of the column.
        columns: that the row has.
        option: that names the column, where one does.
    """
    if name in columns or not columns:  # it has no value
        return "is missing"
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f" ({option})" if option else ""
    if near:
        return f"is missing; did you mean {near[0]!r}?{hint}"
    more = ", …" if len(columns) > _SHOWN else ""
    return f"is missing; the columns are {', '.join(list(columns)[:_SHOWN])}{more}{hint}"
