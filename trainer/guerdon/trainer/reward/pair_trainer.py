"""TRL's `RewardTrainer`, told how to compute scores and in which order to take the pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer

from guerdon.trainer.common.data.tokens import TokenPair
from guerdon.trainer.common.models.language_model import autocast
from guerdon.trainer.common.trl.mixins import MeanOverPairs
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.model import call_through_ddp
from guerdon.trainer.reward.scoring import plain_scores


class PairTrainer(MeanOverPairs, RewardTrainer):  # type: ignore[misc]
    """Pairwise loss, metrics, optimiser, checkpoints and resume are TRL's.

    Args:
        share: compute what both answers of a pair share once.
        compute_dtype: `bfloat16` or `float32`; weights are in float32 either way.
        **kwargs: as for `MeanOverPairs` and `RewardTrainer`.
    """

    def __init__(self, *, share: bool, compute_dtype: str, **kwargs: Any) -> None:
        self._share = share
        self._compute_dtype = compute_dtype
        super().__init__(**kwargs)

    def pairs_in(self, batch: dict[str, Any]) -> int:
        """Pairs in a micro-batch, in one row each or in two."""
        return len(batch["chosen_last"]) if "chosen_last" in batch else super().pairs_in(batch)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss over scores whose head is computed in float32."""
        self._tokens += int(inputs["attention_mask"].sum())
        score = _Scorer(model, self._share and "allowed" in inputs, self._compute_dtype)
        found = super().compute_loss(score, inputs, return_outputs, num_items_in_batch)
        self._metrics["train"].pop("num_tokens", None)  # `LengthGroupedTrainer` counts them
        return found


class _Scorer:
    """What TRL's loss calls in the model's place; gives `.logits` in float32."""

    def __init__(self, model: Any, share: bool, dtype: str) -> None:
        self._model, self._share, self._dtype = model, share, dtype

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        with autocast(self._model, self._dtype):
            return SimpleNamespace(
                logits=call_through_ddp(self._model, partial(self._scores, inputs))
            )

    def _scores(self, inputs: dict[str, Any], model: Any) -> Tensor:
        if not self._share:
            return plain_scores(model, inputs["input_ids"], inputs["attention_mask"])
        batch = sharing.SharedBatch(
            inputs["input_ids"],
            inputs["position_ids"],
            inputs["allowed"],
            inputs["chosen_last"],
            inputs["rejected_last"],
            inputs["attention_mask"],
        )
        return sharing.score_shared(model, batch)


def shared_collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Makes the inputs of `PairTrainer` with `share`; without it, TRL's own collator does."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        pairs = [TokenPair(e["chosen_ids"], e["rejected_ids"], 0, 0) for e in examples]
        batch = sharing.pack(pairs, pad_id)
        margins = [e["margin"] for e in examples if "margin" in e]
        return ({"margin": torch.tensor(margins)} if margins else {}) | {
            "input_ids": batch.input_ids_BL,
            "position_ids": batch.position_ids_BL,
            "allowed": batch.allowed_B1LL,
            "chosen_last": batch.chosen_last_B,
            "rejected_last": batch.rejected_last_B,
            "attention_mask": batch.real_BL,
        }

    return collate
