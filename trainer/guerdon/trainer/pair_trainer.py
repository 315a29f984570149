"""TRL's `RewardTrainer`, told how to compute scores and in which order to take the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl import RewardTrainer

from guerdon.trainer import sharing
from guerdon.trainer.errors import DivergedError
from guerdon.trainer.scoring import autocast, plain_scores
from guerdon.trainer.tokens import TokenPair

_MEGABATCH = 16
"""Batches that are sorted by length together; few enough that epochs differ."""


class PairTrainer(RewardTrainer):  # type: ignore[misc]
    """Pairwise loss, metrics, optimiser, checkpoints and resume are TRL's.

    Args:
        share: compute what both answers of a pair share once.
        compute_dtype: `bfloat16` or `float32`; weights are in float32 either way.
        lengths: of the training pairs, in tokens.
        **kwargs: as for `RewardTrainer`.
    """

    def __init__(
        self, *, share: bool, compute_dtype: str, lengths: Sequence[int], **kwargs: Any
    ) -> None:
        self._share = share
        self._compute_dtype = compute_dtype
        self._lengths = lengths
        super().__init__(**kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss over scores whose head is computed in float32."""
        score = _Scorer(model, self._share and "allowed" in inputs, self._compute_dtype)
        return super().compute_loss(score, inputs, return_outputs, num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch, forward and backward.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                "try a smaller --lr, or --dtype float32"
            )
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        batch = self.args.train_batch_size
        return LengthGrouped(self._lengths, batch, seed=self.args.data_seed or self.args.seed)

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for checkpoints: they are for resuming only."""


class _Scorer:
    """What TRL's loss calls in the model's place; gives `.logits` in float32."""

    def __init__(self, model: Any, share: bool, dtype: str) -> None:
        self._model, self._share, self._dtype = model, share, dtype

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        with autocast(self._model, self._dtype):
            if self._share:
                batch = sharing.SharedBatch(
                    inputs["input_ids"], inputs["position_ids"], inputs["allowed"],
                    inputs["chosen_last"], inputs["rejected_last"], inputs["attention_mask"],
                )  # fmt: skip
                return SimpleNamespace(logits=sharing.score_shared(self._model, batch))
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            return SimpleNamespace(logits=plain_scores(self._model, ids, mask))


def shared_collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Makes the inputs of `PairTrainer` with `share`; without it, TRL's own collator does."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        pairs = [TokenPair(e["chosen_ids"], e["rejected_ids"], 0, 0) for e in examples]
        batch = sharing.pack(pairs, pad_id)
        return {
            "input_ids": batch.input_ids_BL,
            "position_ids": batch.position_ids_BL,
            "allowed": batch.allowed_B1LL,
            "chosen_last": batch.chosen_last_B,
            "rejected_last": batch.rejected_last_B,
            "attention_mask": batch.real_BL,
        }

    return collate


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
