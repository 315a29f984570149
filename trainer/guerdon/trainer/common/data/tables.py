"""Rows of CSV and TSV files. Every cell is text as it stands, and an empty one is None."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guerdon.data import DAMAGED_GZIP, FileFormat, RowError, decompressed, file_format
from guerdon.trainer.common.errors import DataError

_LONGEST_CELL = 16 << 20
"""Characters of a cell."""


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV, by its name, or by a header of training data's columns."""
    named = path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    return path.is_file() and (named or file_format(path) is FileFormat.CSV)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows under the header, one after another, with the line that each begins at, from 1.

    Raises:
        DataError: the file can't be read, or its header names no columns.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open("rb") as raw:
            text = io.TextIOWrapper(decompressed(raw), encoding="utf-8-sig", newline="")
            yield from _rows(text, path)
    except (OSError, *DAMAGED_GZIP, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't read {path}: {error}") from error


def _rows(text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    first = text.readline()
    delimiter = max(",\t;", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    if not all(header) or len(set(header)) != len(header) or not header:
        raise DataError(f"{path}: line 1 must name every column once, and is {first.strip()!r}")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    begins = 2
    for cells in reader:
        if len(cells) == len(header):
            yield begins, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        elif cells:  # a blank line is no row
            reason = f"has {len(cells)} cells, and the header has {len(header)}"
            yield begins, RowError("", reason)
        begins = reader.line_num + 2
