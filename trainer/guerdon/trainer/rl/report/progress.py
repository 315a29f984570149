"""What a person sees while a run goes on: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

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


class Progress:
    """Shows each step. Use it as a context manager: it gives the terminal back on any error.

    Args:
        console: where; a quiet one shows nothing.
        steps: of the whole run.
        done: steps of earlier parts of the run.
    """

    def __init__(self, console: Console, steps: int, done: int = 0) -> None:
        self._console, self._steps, self._done = console, steps, done
        self._phase = ""
        self._last: Mapping[str, float] = {}
        self._held_out: Mapping[str, float] = {}
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._console.quiet:
            self._bar = _LiveBar(self)
            self._bar.add_task("", total=self._steps, completed=self._done)
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

    def update(self, row: Mapping[str, float]) -> None:
        """Show a metrics line: of a step, or of an evaluation."""
        if any(key.startswith("eval/") for key in row):
            self._held_out = row
            self._say(f"step {row['step']:.0f}: {_evaluated(row)}")
            return
        self._last = row
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=int(row["step"]))
        else:
            shown = ", ".join(f"{name} {text}" for name, text in _written(row))
            self._say(f"step {row['step']:.0f}/{self._steps}: {shown}")

    def phase(self, name: str) -> None:
        """Say what is going on now; only a terminal shows it."""
        self._phase = name
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=name)

    def note(self, text: str) -> None:
        """Say something that stays on the screen: a fault survived, a warning."""
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """The newest numbers, for the terminal."""
        grid = Table.grid(padding=(0, 2))
        cells = [f"[dim]{name}[/dim] {text}" for name, text in _written(self._last)]
        for at in range(0, len(cells), 4):
            grid.add_row(*cells[at : at + 4])
        return grid


class _LiveBar(Bar):
    """The bar with the table above it."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        super().__init__(
            TextColumn("[bold]step[/bold]"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=shown._console,
        )

    def get_renderable(self) -> Group:
        """The table, then the bar."""
        return Group(self._shown.table(), *self.get_renderables())


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
