"""Values of JSON files that others wrote, checked one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.data import RowError, read_jsonl
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Table:
    """An object of a file, whose values are asked for by key and type.

    Every method raises a `DataError` that names the file and the key.
    """

    path: Path
    values: dict[str, Any]
    where: str = ""
    """The place of this object in the file."""

    def wrong(self, key: str, what: str) -> DataError:
        """The error for a key."""
        return DataError(f"{self.path}: {self.where}{key} {what}")

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise self.wrong(key, "is missing")
        return self.values[key]

    def text(self, key: str) -> str:
        """A text."""
        found = self._get(key)
        if not isinstance(found, str):
            raise self.wrong(key, f"is {_short(found)}, not a text")
        return found

    def number(self, key: str) -> float:
        """A finite number."""
        found = self._get(key)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.wrong(key, f"is {_short(found)}, not a number")
        try:
            value = float(found)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.wrong(key, f"is {_short(found)}, not a finite number")
        return value

    def optional(self, key: str) -> float | None:
        """A finite number, or None where it is null or missing."""
        return None if self.values.get(key) is None else self.number(key)

    def integer(self, key: str) -> int:
        """A whole number of 0 or more."""
        found = self.number(key)
        if found != int(found) or found < 0:
            raise self.wrong(key, f"is {found:g}, not a whole number of 0 or more")
        return int(found)

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        found = self._get(key)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.wrong(key, f"is {_short(found)}, not a list of texts")
        return found

    def warnings(self) -> tuple[str, ...]:
        """Those of a summary or an evaluation; none where it has no such key."""
        return tuple(self.texts("warnings")) if "warnings" in self.values else ()

    def table(self, key: str) -> Table:
        """An object."""
        found = self._get(key)
        if not isinstance(found, dict):
            raise self.wrong(key, f"is {_short(found)}, not an object")
        return Table(self.path, found, f"{self.where}{key}.")

    def tables(self) -> list[tuple[str, Table]]:
        """All values, each an object."""
        return [(key, self.table(key)) for key in self.values]

    def estimate(self, key: str) -> Estimate:
        """A mean with its interval."""
        found = self.table(key)
        se, low, high = (found.optional(name) for name in ("se", "low", "high"))
        return Estimate(found.number("mean"), se, low, high, found.integer("n"))

    def estimates(self) -> dict[str, Estimate]:
        """All values, each a mean with its interval."""
        return {key: self.estimate(key) for key in self.values}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object")
    return found


def read_tables(path: Path) -> Iterator[Table]:
    """The rows of a JSONL file.

    Raises:
        DataError: it can't be read, or a line is no object.
    """
    try:
        for line, row in read_jsonl(path):
            yield Table(path, row, f"line {line}: ")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    except RowError as error:
        raise DataError(f"{path}, line {error.line}: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
