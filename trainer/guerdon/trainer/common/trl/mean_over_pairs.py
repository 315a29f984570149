"""A loss that is the mean over all pairs of an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guerdon.trainer.common.trl.length_grouped import LengthGroupedTrainer


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
