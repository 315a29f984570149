"""Scores of pairs by a model in training, in batches of like lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guerdon.trainer.common.data.tokens import TokenPair
from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.models.language_model import autocast
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.reward import shared_prefix as sharing


@dataclass(frozen=True, slots=True)
class PairScores:
    """Raw scores, in the order of the pairs."""

    chosen: Floats
    rejected: Floats

    @property
    def delta(self) -> Floats:
        """Chosen less rejected."""
        return self.chosen - self.rejected

    @property
    def all(self) -> Floats:
        """Both, one after the other."""
        return np.concatenate([self.chosen, self.rejected])


def score_pairs(
    model: Any,
    pairs: Sequence[TokenPair],
    *,
    pad_id: int,
    share: bool,
    dtype: str,
    batch_tokens: int = 4096,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PairScores:
    """Score both answers of every pair.

    Args:
        model: the same in every process.
        pairs: dealt to the processes.
        pad_id: a token that ends no sequence.
        share: compute what both answers share once.
        dtype: of the computation, `bfloat16` or `float32`.
        batch_tokens: tokens in a batch, padding counted; one pair may be longer.
        processes: of the run.

    Raises:
        DivergedError: a score is not a finite number.
    """
    sizes = [len(pair.chosen) + len(pair.rejected) for pair in pairs]

    def score(dealt: list[int]) -> list[Floats]:
        found_D2 = np.empty((len(dealt), 2))
        for places in length_batches([sizes[i] for i in dealt], batch_tokens):
            batch = [pairs[dealt[i]] for i in places]
            scores = (_shared if share else _plain)(model, batch, pad_id)
            found_D2[places] = np.stack(np.split(scores, 2), axis=1)
        return list(found_D2)

    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast(model, dtype):
        both_N2 = np.array(processes.share_out(sizes, score)).reshape(-1, 2)
    model.train(was_training)
    if not np.isfinite(both_N2).all():
        raise DivergedError("the model gives scores that are not finite numbers")
    return PairScores(both_N2[:, 0], both_N2[:, 1])


def length_batches(sizes: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places in batches of like sizes, longest first, so that memory runs out at once or never."""
    batch: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        if batch and (len(batch) + 1) * sizes[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def plain_scores(model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Scores of right-padded rows at their true last tokens, of shape (B, 1), in float32.

    The head of a decoder is computed in float32 whatever the rest is in: a score rounded to
    bfloat16 has steps of a hundredth, and good answers tie.
    """
    model_parts = sharing.parts(model)
    if model_parts is None:
        logits: torch.Tensor = model(
            input_ids=ids_BL, attention_mask=mask_BL, use_cache=False
        ).logits
        return logits.float()
    decoder, head = model_parts
    hidden_BLD = decoder(
        input_ids=ids_BL, attention_mask=mask_BL, use_cache=False
    ).last_hidden_state
    rows = torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device)
    return sharing.head_scores(head, hidden_BLD[rows, mask_BL.sum(-1) - 1])


def _shared(model: Any, batch: Sequence[TokenPair], pad_id: int) -> Floats:
    device = next(model.parameters()).device
    packed = sharing.to_device(sharing.pack(batch, pad_id), device)
    return _numbers(sharing.score_shared(model, packed))


def _plain(model: Any, batch: Sequence[TokenPair], pad_id: int) -> Floats:
    device = next(model.parameters()).device
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    longest = max(map(len, rows))
    ids_BL = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=device)
    real = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return _numbers(plain_scores(model, ids_BL, torch.tensor(real, device=device)))


def _numbers(logits: torch.Tensor) -> Floats:
    return logits.float().cpu().numpy().astype(np.float64).flatten()
