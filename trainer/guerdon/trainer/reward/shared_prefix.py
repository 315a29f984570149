"""Both answers of a pair in one row, so that what they share is computed once.

A row is the shared beginning, the rest of the chosen sequence, the rest of the rejected
one. A mask keeps the two rests from seeing each other, and both count positions from the
end of the beginning. The scores are those of two separate rows, for less than two rows'
work: with a long conversation before the last turn, for little more than one.

It works for decoders whose layers all attend to everything before. Whether it holds for a
model at hand is not assumed: `agrees` compares it with the plain way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guerdon.trainer.common.data.tokens import TokenPair


class SharedBatch(NamedTuple):
    """B pairs in rows of L tokens, padded on the right."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    allowed_B1LL: Tensor
    """True where a query (third axis) may see a key (fourth)."""
    chosen_last_B: Tensor
    """The place at which each chosen sequence ends."""
    rejected_last_B: Tensor
    real_BL: Tensor
    """1 for tokens, 0 for padding."""


def pack(pairs: Sequence[TokenPair], pad_id: int) -> SharedBatch:
    """Rows for a batch of pairs."""
    rows = [_row(pair) for pair in pairs]
    longest = max(len(ids) for ids, _, _ in rows)
    shape = (len(rows), longest)
    input_ids_BL = torch.full(shape, pad_id)
    position_ids_BL = torch.zeros(shape, dtype=torch.long)
    # A padding position belongs to a segment of its own, -1, and sees itself only.
    segment_BL = torch.full(shape, -1)
    for i, (ids, positions, segments) in enumerate(rows):
        input_ids_BL[i, : len(ids)] = torch.tensor(ids)
        position_ids_BL[i, : len(ids)] = torch.tensor(positions)
        segment_BL[i, : len(ids)] = torch.tensor(segments)
    return SharedBatch(
        input_ids_BL,
        position_ids_BL,
        _allowed(segment_BL),
        torch.tensor([len(pair.chosen) - 1 for pair in pairs]),
        torch.tensor([len(ids) - 1 for ids, _, _ in rows]),
        (segment_BL >= 0).long(),
    )


def _row(pair: TokenPair) -> tuple[list[int], list[int], list[int]]:
    """Token ids, positions and segments (0 shared, 1 chosen, 2 rejected) of one row."""
    n = pair.shared
    ids = pair.chosen + pair.rejected[n:]
    positions = [*range(len(pair.chosen)), *range(n, len(pair.rejected))]
    segments = [0] * n + [1] * (len(pair.chosen) - n) + [2] * (len(pair.rejected) - n)
    return ids, positions, segments


def _allowed(segment_BL: Tensor) -> Tensor:
    query, key = segment_BL[:, :, None], segment_BL[:, None, :]
    length = segment_BL.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    seen = ((key == 0) & (query >= 0)) | ((key == query) & (query > 0))
    return ((seen & earlier) | torch.eye(length, dtype=torch.bool))[:, None]


def score_shared(model: nn.Module, batch: SharedBatch) -> Tensor:
    """Scores of all chosen, then of all rejected sequences, of shape (2B, 1).

    Args:
        model: a sequence classifier of `transformers` with a decoder and a head `score`.
    """
    found = parts(model)
    assert found is not None, "may_share was not asked"
    decoder, head = found
    hidden_BLD = decoder(
        input_ids=batch.input_ids_BL,
        attention_mask=batch.allowed_B1LL,
        position_ids=batch.position_ids_BL,
        use_cache=False,
    ).last_hidden_state
    rows = torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device)
    last = [hidden_BLD[rows, batch.chosen_last_B], hidden_BLD[rows, batch.rejected_last_B]]
    return head_scores(head, torch.cat(last))


def head_scores(head: nn.Module, hidden_ND: Tensor) -> Tensor:
    """The head's output in float32, whatever the rest is computed in."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        scores: Tensor = head(hidden_ND.float())
    return scores


def parts(model: Any) -> tuple[nn.Module, nn.Module] | None:
    """The decoder and the head of a sequence classifier, LoRA around it or not.

    None when it has no head called `score`, as encoders with a pooler of their own.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    decoder = getattr(model, model.base_model_prefix, None)
    head = getattr(model, "score", None)
    if isinstance(decoder, nn.Module) and isinstance(head, nn.Module):
        return decoder, head
    return None


def to_device(batch: SharedBatch, device: torch.device) -> SharedBatch:
    """The batch on the model's device."""
    return SharedBatch(*(tensor.to(device) for tensor in batch))


def may_share(model: Any) -> bool:
    """Whether the model is of the kind for which sharing is meant."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    config = model.config.get_text_config()
    windows = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    attention = config._attn_implementation
    return parts(model) is not None and attention == "sdpa" and not windows and not window


@torch.no_grad()
def agrees(model: Any, pairs: Sequence[TokenPair], pad_id: int, tolerance: float = 1e-3) -> bool:
    """Whether a few pairs get the scores in float32 that they get one sequence at a time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        batch = to_device(pack(pairs, pad_id), device)
        shared = score_shared(model, batch).float().cpu().flatten()
        alone = [
            model(input_ids=torch.tensor([ids], device=device)).logits.float().cpu().flatten()
            for ids in [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        ]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    finally:
        model.train(was_training)
    return bool(torch.allclose(shared, torch.cat(alone), atol=tolerance, rtol=tolerance))
