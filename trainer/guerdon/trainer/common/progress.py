"""How far something long has come, for a person: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar(Progress):
    """A bar, on a terminal only. A context manager: it gives the terminal back on any error.

    Args:
        console: where; a quiet one shows nothing.
        words: what is being done.
        total: how many there are.
        done: of earlier parts of the run.
        above: what stands over the bar.
        transient: whether it goes away at the end.
    """

    def __init__(
        self,
        console: Console,
        words: str,
        total: int,
        done: int = 0,
        *,
        above: Callable[[], RenderableType] = lambda: Group(),
        transient: bool = False,
    ) -> None:
        self._above = above
        super().__init__(
            TextColumn(words),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=transient,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self.add_task("", total=total, completed=done)

    def get_renderable(self) -> Group:
        """What stands above, then the bar."""
        return Group(self._above(), *self.get_renderables())

    def move(self, done: int | None = None, text: str | None = None) -> None:
        """Show how many are done, and a few words beside it."""
        self.update(self._task, completed=done, description=text)
