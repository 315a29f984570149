"""The order in which training data is taken: like lengths together, in batches at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

_MEGABATCH = 16
"""Batches that are sorted by length together; few enough that epochs differ."""


class LengthGrouped(Sampler[int]):
    """Batches of like lengths in random order, which wastes little on padding.

    The order is a function of seed and epoch alone (not of a global generator, as in
    `transformers`' own), so a resumed run sees the pairs that it had not seen.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        size = self._batch * _MEGABATCH
        batches: list[Any] = []
        for start in range(0, len(order), size):
            mega = order[start : start + size]
            mega = mega[np.argsort(-self._lengths[mega], kind="stable")]
            batches += [mega[i : i + self._batch] for i in range(0, len(mega), self._batch)]
        # The one batch that may be short goes last, or all after it would be cut elsewhere.
        last = [batches.pop()] if len(batches[-1]) < self._batch else []
        for i in random.permutation(len(batches)):
            yield from batches[i].tolist()
        for batch in last:
            yield from batch.tolist()
