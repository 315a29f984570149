"""Progress on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LOG_INTERVAL_S = 10.0
"""How often a line is written where there is no terminal."""


@dataclass(slots=True)
class Tally:
    """What has been done in this run."""

    rows: int = 0
    scores: int = 0
    tokens: int = 0
    """Tokens that the model saw, prompts counted once for each response."""
    failed: int = 0
    truncated: int = 0
    """Responses whose prompt was cut from the left."""
    dropped: int = 0
    """Responses of whose conversation the model's chat template leaves text out."""


class Progress:
    """Shows rows, rows/s, tokens/s and the time left; silent unless `shown`.

    Args:
        shown: True, False, or None for "when standard error is a terminal".
        path: the input, whose size tells how far it is; None for a pipe.
    """

    def __init__(self, shown: bool | None, path: Path | None, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        terminal = self._stream.isatty()
        self._shown = terminal if shown is None else shown
        self._size = path.stat().st_size if path is not None and path.is_file() else None
        self._bar = self._make_bar() if self._shown and terminal else None
        self._task = self._bar.add_task("", total=self._size, rates="") if self._bar else None
        self._started = self._logged = time.monotonic()
        self._kept = 0
        self.tally = Tally()

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def resumed(self, rows: int) -> None:
        """An earlier run had finished these rows."""
        self._kept = rows
        self._started = time.monotonic()
        if rows:
            self.say(f"{rows:,} rows are there from an earlier run; going on after them.")

    def say(self, message: str) -> None:
        """A line for the person watching."""
        if self._bar:
            self._bar.console.print(f"guerdon: {message}", highlight=False, markup=False)
        else:
            print(f"guerdon: {message}", file=self._stream)

    def update(self, position: int) -> None:
        """Redraws, `position` bytes into the input."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=position, rates=self._rates())
        elif self._shown and time.monotonic() - self._logged >= LOG_INTERVAL_S:
            self._logged = time.monotonic()
            done = f"{position / self._size:.0%}, " if self._size else ""
            self.say(f"{done}{self._rates()}")

    def summary(self) -> str:
        """What was done and how fast, in one line."""
        tally, extra = self.tally, ""
        if self._kept:
            extra += f", after {self._kept:,} from before"
        if tally.truncated:
            extra += f"; {tally.truncated:,} responses had their prompt cut to fit"
        if tally.dropped:
            extra += f"; {tally.dropped:,} responses had text that the chat template leaves out"
        if tally.failed:
            extra += f"; {tally.failed:,} rows failed"
        return f"{tally.scores:,} scores, {self._rates()}{extra}."

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-6)
        tally = self.tally
        return (
            f"{tally.rows:,} rows, {tally.rows / seconds:,.1f} rows/s, "
            f"{tally.tokens / seconds:,.0f} tokens/s"
        )

    def _make_bar(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = [BarColumn(), TaskProgressColumn()] if self._size else []
        return Progress(
            *columns,
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
        )
