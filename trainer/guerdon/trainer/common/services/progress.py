"""The progress of sampling, for a person."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console

from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.services.types import Group

LINES = 10
"""Lines over the whole sampling, where there is no terminal."""


class DrawingBar(Bar):
    """A bar on a terminal, some lines elsewhere. A context manager.

    Args:
        console: where; a quiet one shows nothing.
        prompts: of the whole run.
        done: of earlier parts of the run.
    """

    def __init__(self, console: Console, prompts: int, done: int) -> None:
        super().__init__(console, "sampling", prompts, done)
        self._prompts, self._done = prompts, done
        self._rewards: list[float] = []

    def add(self, group: Group) -> None:
        """A prompt is sampled and scored."""
        self._done += 1
        self._rewards.append(float(group.rewards_G.mean()))
        mean = f"mean reward {np.mean(self._rewards):+.3f}"
        self.move(self._done, mean)
        tenth = self._done % math.ceil(self._prompts / LINES) == 0
        if self.disable and (tenth or self._done == self._prompts):
            self.say(f"sampled {self._done}/{self._prompts} prompts: {mean}")
