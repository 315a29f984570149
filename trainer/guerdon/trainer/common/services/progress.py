"""The progress of sampling, for a person."""

from __future__ import annotations

import math
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from guerdon.trainer.common.services.types import Group

LINES = 10
"""Lines over the whole sampling, where there is no terminal."""


class DrawingBar:
    """A bar on a terminal, some lines elsewhere. A context manager.

    Args:
        console: where; a quiet one shows nothing.
        prompts: of the whole run.
        done: of earlier parts of the run.
    """

    def __init__(self, console: Console, prompts: int, done: int) -> None:
        self._console, self._prompts, self._done = console, prompts, done
        self._rewards: list[float] = []
        self._bar: Bar | None = None

    def __enter__(self) -> DrawingBar:
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Bar(
                TextColumn("sampling"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._bar.add_task("", total=self._prompts, completed=self._done)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def add(self, group: Group) -> None:
        """A prompt is sampled and scored."""
        self._done += 1
        self._rewards.append(float(group.rewards_G.mean()))
        mean = f"mean reward {np.mean(self._rewards):+.3f}"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=mean)
        elif self._done % math.ceil(self._prompts / LINES) == 0 or self._done == self._prompts:
            self._console.print(
                f"sampled {self._done}/{self._prompts} prompts: {mean}",
                highlight=False,
                soft_wrap=True,
            )
