"""Language models trained and measured on completions: prompt and response as token ids.

What RFT, SFT and the preference recipes share. Nothing is tokenised here, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from guerdon.trainer.common.models.language_model import autocast
from guerdon.trainer.common.trl.mixins import DivergenceGuard

Completion: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the response to it."""
Floats: TypeAlias = npt.NDArray[np.float32]

IGNORED = -100
"""The label of a token that has no loss."""
_TOLERANCE = 1e-3
"""Nats by which packed sequences may differ from those alone, in float32."""
BATCH_TOKENS = 512
"""Tokens in a pass that only measures: so many times the vocabulary's logits are made."""


class CompletionTrainer(DivergenceGuard, SFTTrainer):  # type: ignore[misc]
    """TRL's loss, optimiser, checkpoints and resume; stops at the first loss that is no number."""


def completion_dataset(completions: Sequence[Completion]) -> Dataset:
    """Rows of `input_ids` and `labels`: prompt and response, and the response alone."""
    return Dataset.from_dict(
        {
            "input_ids": [[*prompt, *response] for prompt, response in completions],
            "labels": [[IGNORED] * len(prompt) + [*response] for prompt, response in completions],
        }
    )


def micro_batch(batch_size: int, longest: int, most_tokens: int) -> int:
    """Completions in one forward pass: as many as fit, and a divisor of the batch.

    Args:
        batch_size: completions in a step.
        longest: tokens of the longest.
        most_tokens: in one pass; a single completion may have more.
    """
    fit = [
        n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * longest <= most_tokens
    ]
    return max(fit, default=1)


@torch.no_grad()
def keeps_apart(model: Any, rows: Dataset) -> bool:
    """Whether sequences in one row don't see each other, by trying it on two of them.

    What tells them apart is their positions; a model that takes no heed of them would train on
    each completion with a stranger before it.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows.select(range(min(2, len(rows))))]
    if len(ids) < 2:
        return False
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        positions = torch.cat([torch.arange(len(part)) for part in ids])
        together = _logprobs(model, torch.cat(ids)[None].to(device), positions[None].to(device))
        alone = [_logprobs(model, part[None].to(device)) for part in ids]
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return bool((together - torch.cat(alone, dim=1)).abs().max() <= _TOLERANCE)


def _logprobs(model: Any, ids_1L: Tensor, positions_1L: Tensor | None = None) -> Tensor:
    logits = model(input_ids=ids_1L, position_ids=positions_1L, use_cache=False).logits
    found: Tensor = logits.float().log_softmax(-1)
    return found


@torch.no_grad()
def response_logprobs(
    model: Any,
    completions: Sequence[Completion],
    *,
    temperature: float = 1.0,
    dtype: str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Floats]:
    """log π of each response token of each completion, float32 [T].

    Args:
        model: with or without LoRA.
        completions: in any order.
        temperature: logits are divided by it.
        dtype: of the computation.
        progress: told how many more are done.
    """
    model.eval()
    order = sorted(range(len(completions)), key=lambda i: _length(completions[i]))
    found: dict[int, Floats] = {}
    while order:
        batch = [order.pop()]  # the longest first: what fits beside it is known
        while order and (len(batch) + 1) * _length(completions[batch[0]]) <= BATCH_TOKENS:
            batch.append(order.pop())
        rows = _batch_logprobs(model, [completions[i] for i in batch], temperature, dtype)
        found.update(zip(batch, rows, strict=True))
        progress(len(batch))
    return [found[i] for i in range(len(completions))]


def _length(completion: Completion) -> int:
    return len(completion[0]) + len(completion[1])


def _batch_logprobs(
    model: Any, completions: Sequence[Completion], temperature: float, dtype: str
) -> list[Floats]:
    """log π of completions in rows padded on the right, which causal attention never sees."""
    device = next(model.parameters()).device
    longest = max(map(_length, completions))
    ids_BL = torch.zeros((len(completions), longest), dtype=torch.long)
    real_BL = torch.zeros_like(ids_BL)
    for i, (prompt, response) in enumerate(completions):
        ids = np.concatenate([prompt, response]).astype(np.int64)
        ids_BL[i, : len(ids)] = torch.from_numpy(ids)
        real_BL[i, : len(ids)] = 1
    ids_BL = ids_BL.to(device)
    with autocast(model, dtype):
        logits_BLV = model(
            input_ids=ids_BL, attention_mask=real_BL.to(device), use_cache=False
        ).logits
    logprobs = _picked(logits_BLV[:, :-1], ids_BL[:, 1:], temperature)
    begins = [len(prompt) - 1 for prompt, _ in completions]
    return [
        logprobs[i, begin : begin + len(response)]
        for i, (begin, (_, response)) in enumerate(zip(begins, completions, strict=True))
    ]


def _picked(logits_BLV: Tensor, ids_BL: Tensor, temperature: float) -> Floats:
    logprobs_BLV = (logits_BLV.float() / temperature).log_softmax(-1)
    found: Floats = logprobs_BLV.gather(-1, ids_BL[..., None])[..., 0].cpu().numpy()
    return found
