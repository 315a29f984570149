"""What stands before a trainer of TRL's among a class's bases: guard, order of the data, mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup


class DivergenceGuard:
    """Put before one of TRL's trainers in a class's bases."""

    processes: ProcessGroup = SINGLE_PROCESS
    """The processes of the run."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        ours: Any = super()
        loss: Tensor = ours.training_step(*args, **kwargs)
        # Where one process has such a loss, all of them end, and none waits for it.
        if self.processes.any_rank(not torch.isfinite(loss)):
            state: Any = self.state  # type: ignore[attr-defined]
            raise DivergedError(
                f"the loss is not a finite number at step {state.global_step + 1}: "
                "try a smaller --lr, or --dtype float32"
            )
        return loss

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for checkpoints: they are for resuming only."""


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


class MeanOverPairs(LengthGroupedTrainer):
    """Put before a trainer of TRL's whose loss is the mean over the pairs of a micro-batch.

    TRL takes the mean of these means, over micro-batches and processes, so that a pair of a short
    micro-batch, which the last one of a pass may be, counts for more than others. Here every pair
    of an optimiser step counts the same, however `accumulate` and the processes divide them.
    """

    loss_is_scaled_for_ga = True  # tells `transformers` to add micro-batches up, not to average

    def pairs_in(self, batch: dict[str, Any]) -> int:
        """Pairs in a micro-batch; by default the chosen rows, then the rejected ones."""
        return len(batch["input_ids"]) // 2

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: Any
    ) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of an optimiser step, and its pairs over all processes."""
        ours: Any = super()
        batches, _ = ours.get_batch_samples(epoch_iterator, num_batches, device)
        pairs = self.processes.all_gather(sum(self.pairs_in(batch) for batch in batches))
        return batches, sum(pairs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's part of the step's mean; its own mean outside of a step.

        DDP takes the mean over processes of the gradient, so each one's part counts `count` times.
        """
        ours: Any = super()
        found = ours.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            return found
        part = self.pairs_in(inputs) * self.processes.world_size / num_items_in_batch
        return (found[0] * part, found[1]) if return_outputs else found * part
