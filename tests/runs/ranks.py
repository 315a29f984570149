"""`guerdon train` in several processes, as a launcher starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.forked import Child, rank_environment
from tests.support.ports import free_port


def train_rank(arguments: Sequence[str], dies_at: int) -> int:  # in a process of its own
    """One rank's command, killed in a step if that is not 0."""
    from guerdon.cli.main import main
    from guerdon.trainer.common.trl.mixins import DivergenceGuard

    step = DivergenceGuard.training_step

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == dies_at:
            os._exit(9)
        return step(self, *args, **kwargs)

    if dies_at:
        DivergenceGuard.training_step = killed  # type: ignore[method-assign]
    return main(["train", *arguments])


def launch(
    folder: Path, arguments: Sequence[str], *, count: int = 2, dies: dict[int, int] | None = None
) -> list[tuple[int, str]]:
    """Exit code and all that was printed, of each rank.

    Args:
        folder: for their logs.
        arguments: of `guerdon train`.
        count: of the processes.
        dies: rank to the step in which it dies.
    """
    port = free_port()
    ranks = [
        Child(
            folder / f"{port}-{rank}.log",
            train_rank,
            list(arguments),
            (dies or {}).get(rank, 0),
            environment=rank_environment(rank, count, port),
        )
        for rank in range(count)
    ]
    return [(rank.wait(), rank.log()) for rank in ranks]


def both_end_well(folder: Path, arguments: Sequence[str]) -> str:
    """Two ranks, of which one speaks; what it said."""
    (code, said), (other, silent) = launch(folder, arguments)
    assert (code, other, silent) == (0, 0, ""), said + silent
    return said


def one_dies(folder: Path, arguments: Sequence[str], step: int) -> None:
    """The second of two ranks is killed in a step: the first says so, and nothing else."""
    (code, said), (dead, _) = launch(folder, arguments, dies={1: step})
    assert (code, dead) == (1, 9)
    assert said.count("guerdon: another process of this run has ended") == 1
    assert "Traceback" not in said


def one_refuses(folder: Path, arguments: Sequence[str], sentence: str) -> None:
    """Two ranks fail, of which one says why."""
    (code, said), (other, silent) = launch(folder, arguments)
    assert code in (1, 2)
    assert (other, silent) == (1, "")
    assert said.count("guerdon: ") == 1
    assert sentence in said
