"""Training on single answers: `transformers`' trainer, with a head read where it is told to.

TRL has no trainer for these: its `PRMTrainer` was removed before 1.16 (its pull request 7133),
and it never had one for regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.models.language_model import autocast
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.trl.mixins import LengthGroupedTrainer
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.model import call_through_ddp
from guerdon.trainer.reward.objectives.rated_answers import TokenizedAnswer
from guerdon.trainer.reward.scoring import length_batches

IGNORED = -100
"""The entry of `labels` without a target. The trainer counts the others, to divide by them."""

AnswerLoss = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, float]]]
"""The sum of the loss over what has a target, and metrics, of logits [N, K] and the batch."""


def read_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The head's outputs [N, K] at N places of a batch of right-padded rows, in float32.

    Args:
        model: with a head on sequences or on tokens, LoRA around it or not.
        batch: `input_ids` and `attention_mask` [B, L], `rows` and `places` [N].
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    rows_N, places_N = batch["rows"], batch["places"]
    found = sharing.parts(model)
    if found is not None:
        decoder, head = found
        hidden_BLD = decoder(**inputs, use_cache=False).last_hidden_state
        return sharing.head_scores(head, hidden_BLD[rows_N, places_N])
    logits: Tensor = model(**inputs).logits
    return (logits[rows_N] if logits.dim() == 2 else logits[rows_N, places_N]).float()


def collate(rows: Sequence[TokenizedAnswer], pad_id: int) -> dict[str, Tensor]:
    """What `read_logits` reads: right-padded rows, and the N places of the head."""
    longest = max(len(row.ids) for row in rows)
    return {
        "input_ids": torch.tensor([r.ids + [pad_id] * (longest - len(r.ids)) for r in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in rows]
        ),
        "rows": torch.tensor([i for i, row in enumerate(rows) for _ in row.places]),
        "places": torch.tensor([place for row in rows for place in row.places]),
    }


class AnswerTrainer(LengthGroupedTrainer, Trainer):  # type: ignore[misc]
    """Optimiser, schedule, checkpoints and resume are `transformers`'.

    The loss of an optimiser step is the mean over all its targets, however they are spread over
    batches.

    Args:
        loss: of a batch.
        targets: makes `labels` (and what else the loss reads) of rows.
        rows: the training rows.
        pad_id: a token that ends no sequence.
        compute_dtype: `bfloat16` or `float32`; weights are in float32 either way.
        **kwargs: as for `LengthGroupedTrainer` and `Trainer`.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        loss: AnswerLoss,
        targets: Callable[[Sequence[TokenizedAnswer]], dict[str, Tensor]],
        rows: Sequence[TokenizedAnswer],
        pad_id: int,
        compute_dtype: str,
        **kwargs: Any,
    ) -> None:
        self._loss = loss
        self._dtype = compute_dtype
        self._seen: dict[str, list[float]] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(rows),
            lengths=[len(r.ids) for r in rows],
            data_collator=lambda batch: collate(batch, pad_id) | targets(batch),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # so that targets are counted over a whole step

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum over this batch's targets, divided by the number of the whole step's."""
        with autocast(model, self._dtype):
            logits_NK = call_through_ddp(model, lambda inner: read_logits(inner, inputs))
        total, metrics = self._loss(logits_NK, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORED).sum()
        else:  # of all processes, over which DDP will take the mean
            total = total * self.processes.world_size
        self._tokens += int(inputs["attention_mask"].sum())
        for key, value in metrics.items():
            self._seen.setdefault(key, []).append(value)
        loss = total / num_items_in_batch
        return (loss, {"logits": logits_NK}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the loss's metrics since the last line."""
        parts = self.processes.all_gather(self._seen)
        for key in self._seen:
            logs[key] = float(np.mean([value for seen in parts for value in seen.get(key, ())]))
        self._seen.clear()
        super().log(logs, start_time)


_BATCH_TOKENS = 4096
"""Tokens of a batch that is only computed, padding counted; one row may be longer."""


def answer_outputs(
    model: Any,
    rows: Sequence[TokenizedAnswer],
    *,
    pad_id: int,
    dtype: str,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> list[Floats]:
    """The head's outputs for each row, of shape [places, K], in the order of the rows.

    Args:
        model: the same in every process.
        rows: dealt to the processes.
        pad_id: a token that ends no sequence.
        dtype: of the computation, `bfloat16` or `float32`.
        processes: of the run.

    Raises:
        DivergedError: one is not a finite number.
    """

    def outputs(dealt: list[int]) -> list[Floats]:
        return _outputs(model, [rows[i] for i in dealt], pad_id)

    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(model, dtype):
        found = processes.share_out([len(row.ids) for row in rows], outputs)
    model.train(was_training)
    if not all(np.isfinite(part).all() for part in found):
        raise DivergedError("the model gives scores that are not finite numbers")
    return found


def _outputs(model: Any, rows: Sequence[TokenizedAnswer], pad_id: int) -> list[Floats]:
    found: dict[int, Floats] = {}
    device = next(model.parameters()).device
    for places in length_batches([len(row.ids) for row in rows], _BATCH_TOKENS):
        some = [rows[i] for i in places]
        batch = {k: v.to(device) for k, v in collate(some, pad_id).items()}
        logits = read_logits(model, batch).float().cpu().numpy().astype(np.float64)
        ends = np.cumsum([len(row.places) for row in some])[:-1]
        found.update(zip(places, np.split(logits, ends), strict=True))
    return [found[i] for i in range(len(rows))]
