"""metrics.jsonl: a line for each logged step. Loads nothing heavy."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from guerdon.trainer.common.errors import DivergedError


class MetricsLog:
    """Appends a line to metrics.jsonl for every logged step.

    Args:
        path: the file.
        rows: what an earlier part of the run logged.
        main: whether this is the process that writes; the others only keep the rows.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]], *, main: bool = True) -> None:
        self.rows = list(rows)
        self._path = path
        self._main = main
        self._before = rows[-1]["seconds"] if rows else 0.0
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return float(self._before + time.monotonic() - self._begun)

    def add(self, row: dict[str, Any]) -> None:
        """Writes one line, with the seconds of training so far.

        Raises:
            DivergedError: a number in it is not finite.
        """
        row = {**row, "seconds": round(self.seconds, 2)}
        for key, value in row.items():
            if not math.isfinite(value):
                raise DivergedError(f"{key} is {value} at step {row['step']}: try a smaller --lr")
        self.rows.append(row)
        if self._main:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")
