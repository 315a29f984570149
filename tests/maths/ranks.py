"""Several processes' reductions, by threads that meet at a barrier."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms.base import Reduce

T = TypeVar("T")


class _Rank:
    def __init__(self, rank: int, slots: list[Tensor], barrier: Barrier) -> None:
        self._rank, self._slots, self._barrier = rank, slots, barrier

    def _gather(self, values_K: Tensor) -> Tensor:
        assert values_K.dtype == torch.float64
        assert values_K.dim() == 1
        self._slots[self._rank] = values_K
        self._barrier.wait(30)
        every = torch.stack(self._slots)
        self._barrier.wait(30)
        return every

    def sum(self, values_K: Tensor) -> Tensor:
        return self._gather(values_K).sum(0)

    def max(self, values_K: Tensor) -> Tensor:
        return self._gather(values_K).amax(0)


class Alone:
    """The only process there is."""

    def sum(self, values_K: Tensor) -> Tensor:
        return values_K

    max = sum


ALONE = Alone()


def together(ranks: int, work: Callable[[int, Reduce], T]) -> list[T]:
    """What each rank's work returns; one that reduces more often than another fails."""
    barrier, slots = Barrier(ranks), [torch.zeros(0)] * ranks
    with ThreadPoolExecutor(ranks) as pool:
        given = [_Rank(rank, slots, barrier) for rank in range(ranks)]
        return list(pool.map(work, range(ranks), given))
