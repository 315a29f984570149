"""The order in which training data is taken: like lengths together, in batches at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.trl.divergence_guard import DivergenceGuard

_MEGABATCH = 16
"""Batches that are sorted by length together; few enough that epochs differ."""


class LengthGroupedSampler(Sampler[int]):
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


class EpochOrder(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler which pass it is.

    Accelerate does, but not through the two wrappers that several processes and a resumed run put
    around it (1.15): the rest of the pass would be taken from the first pass's order.
    """

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> None:
        """Called by the trainer."""
        batches = train_dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(int(state.epoch or 0))


class LengthGroupedTrainer(DivergenceGuard):
    """Put before a trainer: takes like lengths together, by the same order in a resumed run and in
    every process. The callback `EpochOrder` belongs to it.

    Args:
        lengths: of the training rows, in tokens.
        processes: of the run.
        **kwargs: as for the trainer.
    """

    def __init__(
        self, *, lengths: Sequence[int], processes: ProcessGroup = SINGLE_PROCESS, **kwargs: Any
    ) -> None:
        self._lengths = lengths
        self.processes = processes
        self._tokens = 0
        """Seen by this process since it began."""
        super().__init__(**kwargs)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """The trainer's, with the tokens: TRL loses some where the last batch is not full."""
        tokens = sum(self.processes.all_gather(self._tokens))
        if "loss" in logs and tokens:  # not every trainer counts its own
            logs["num_tokens"] = tokens
        ours: Any = super()
        ours.log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        ours: Any = self
        # Accelerate gives each process its part of every batch.
        batch = ours.args.train_batch_size * self.processes.world_size
        return LengthGroupedSampler(self._lengths, batch, seed=ours.args.seed)
