"""What a person sees while a run goes on: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import say

SHOWN: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward", "+.3f"),
    ("kl", "KL", ".2f"),
    ("loss", "loss", "+.4f"),
    ("entropy", "entropy", ".2f"),
    ("clip_fraction", "clipped", ".1%"),
    ("accepted", "kept", ".0%"),
    ("length", "length", ".1f"),
    ("finished", "finished", ".0%"),
    ("staleness", "stale", ".2f"),
    ("mismatch_kl", "mismatch KL", ".1e"),
    ("ess", "ESS", ".3f"),
    ("tokens_per_second", "tokens/s", ".0f"),
)
"""Key, its short name, and how it is written."""


class RunProgress(Bar):
    """Shows each step. Use it as a context manager: it gives the terminal back on any error.

    Args:
        console: where; a quiet one shows nothing.
        steps: of the whole run.
        done: steps of earlier parts of the run.
    """

    def __init__(self, console: Console, steps: int, done: int = 0) -> None:
        self._steps = steps
        self._last: Mapping[str, float] = {}
        super().__init__(console, "[bold]step[/bold]", steps, done, above=self.table)

    def add(self, row: Mapping[str, float]) -> None:
        """Show a metrics line: of a step, or of an evaluation."""
        if any(key.startswith("eval/") for key in row):
            say(self.console, f"step {row['step']:.0f}: {_evaluated(row)}")
            return
        self._last = row
        self.move(int(row["step"]))
        if self.disable:
            shown = ", ".join(f"{name} {text}" for name, text in _written(row))
            say(self.console, f"step {row['step']:.0f}/{self._steps}: {shown}")

    def phase(self, name: str) -> None:
        """Say what is going on now; only a terminal shows it."""
        self.move(text=name)

    def note(self, text: str) -> None:
        """Say something that stays on the screen: a fault survived, a warning."""
        say(self.console, text, "yellow")

    def table(self) -> Table:
        """The newest numbers, for the terminal."""
        grid = Table.grid(padding=(0, 2))
        cells = [f"[dim]{name}[/dim] {text}" for name, text in _written(self._last)]
        for at in range(0, len(cells), 4):
            grid.add_row(*cells[at : at + 4])
        return grid


def _written(row: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, format(row[key], how)) for key, name, how in SHOWN if key in row]


def _evaluated(row: Mapping[str, float]) -> str:
    text = f"held-out reward {row['eval/reward']:+.3f}"
    if "eval/reward_se" in row:
        text += f" ± {row['eval/reward_se']:.3f} (standard error)"
    for key, name, how in (
        ("eval/kl", "KL", ".2f"),
        ("eval/length", "length", ".1f"),
        ("eval/heldout_reward", "other reward model", "+.3f"),
    ):
        text += f", {name} {format(row[key], how)}" if key in row else ""
    return text
