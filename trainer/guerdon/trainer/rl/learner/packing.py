"""Samples as packed rows: no padding, and a prompt once for all of its completions.

    row:      [ prompt a | response a0 | response a1 | prompt b | response b0 … ]
    position:   0 … P-1    P …           P …           0 …

A response attends to its prompt and to itself. The last token of a response predicts nothing,
so it is not in the row; the prompt's last token predicts the first token of each response.

`transformers` calls `packed_attention` in the place of its own, with the row's blocks as a
keyword argument of the model's forward call. Only linear layers see the row as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from guerdon.trainer.common.services.types import Ints, Sample

PACKED = "guerdon_trainer_packed"
"""The name under which the attention is registered."""


@dataclass(slots=True, eq=False)
class PackedBlock:
    """A prompt of P tokens and n responses of up to T tokens in a row of L tokens."""

    start: int
    prompt: int
    """P."""
    gather_nT: Tensor
    """Places in the row of each response's tokens; the prompt's first where there is none."""
    scatter_R: Tensor
    """Places in the flattened [n, T] of the responses' real tokens, in the row's order."""
    mask_TK: Tensor
    """True where a response's token may see a key: all of the prompt, and itself up to here."""


@dataclass(slots=True, eq=False)
class PackedRow:
    """L tokens to compute, and the M response tokens that they predict."""

    ids_L: Tensor
    positions_L: Tensor
    predict_M: Tensor
    """Places in the row of the hidden states that predict the tokens."""
    targets_M: Tensor
    tokens_M: Tensor
    """Each token's place among the step's N, for `Prepared.take`."""
    blocks: list[PackedBlock]
    idle: bool = False
    """Computed only to keep ranks in step; nothing of it counts."""

    def to(self, device: torch.device) -> PackedRow:
        """The row on a device; `tokens_M` stays."""
        blocks = [
            PackedBlock(
                b.start,
                b.prompt,
                b.gather_nT.to(device),
                b.scatter_R.to(device),
                b.mask_TK.to(device),
            )
            for b in self.blocks
        ]
        return PackedRow(
            self.ids_L.to(device),
            self.positions_L.to(device),
            self.predict_M.to(device),
            self.targets_M.to(device),
            self.tokens_M,
            blocks,
            self.idle,
        )


@dataclass(frozen=True, slots=True)
class PackingUnit:
    """A prompt with some of its samples: what stays together in a row."""

    prompt_ids_P: Ints
    responses: tuple[Ints, ...]
    offsets: tuple[int, ...]
    """Places among the step's N tokens at which the responses begin."""

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return len(self.prompt_ids_P) + sum(len(response) - 1 for response in self.responses)


def pack(
    samples: Sequence[Sample], offsets: Sequence[int], limit: int, *, share: bool = True
) -> list[PackedRow]:
    """Rows of at most `limit` tokens (or of one sample that is longer).

    Args:
        samples: those of one prompt next to each other.
        offsets: where each one's tokens begin among the step's N.
        limit: tokens of a row.
        share: compute a prompt once for several samples; else every sample has a row.
    """
    if not share:
        units = [_unit([sample], [at]) for sample, at in zip(samples, offsets, strict=True)]
        return [make_row([unit]) for unit in units]
    units = sorted(_units(samples, offsets, limit), key=lambda unit: (-unit.tokens, unit.offsets))
    rows: list[list[PackingUnit]] = []
    room: list[int] = []
    for unit in units:  # first fit, the longest first
        place = next((i for i, left in enumerate(room) if unit.tokens <= left), None)
        if place is None:
            rows.append([unit])
            room.append(limit - unit.tokens)
        else:
            rows[place].append(unit)
            room[place] -= unit.tokens
    return [make_row(row) for row in rows]


def idle_row() -> PackedRow:
    """A row of one token that predicts nothing that counts: keeps ranks in step."""
    row = make_row([PackingUnit(np.zeros(1, np.int32), (np.zeros(1, np.int32),), (0,))])
    row.idle = True
    return row


def _units(samples: Sequence[Sample], offsets: Sequence[int], limit: int) -> Iterator[PackingUnit]:
    """Samples of one prompt, cut where they would pass the limit."""
    held: list[Sample] = []
    places: list[int] = []
    size = 0
    for sample, offset in zip(samples, offsets, strict=True):
        same = held and np.array_equal(held[0].prompt_ids_P, sample.prompt_ids_P)
        if held and (not same or size + sample.tokens - 1 > limit):
            yield _unit(held, places)
            held, places = [], []
        if not held:
            size = len(sample.prompt_ids_P)
        held.append(sample)
        places.append(offset)
        size += sample.tokens - 1
    if held:
        yield _unit(held, places)


def _unit(samples: Sequence[Sample], offsets: Sequence[int]) -> PackingUnit:
    responses = tuple(sample.response_ids_T for sample in samples)
    return PackingUnit(samples[0].prompt_ids_P, responses, tuple(offsets))


def make_row(units: Sequence[PackingUnit]) -> PackedRow:
    """One row of all these tokens."""
    parts = []
    at = 0
    for unit in units:
        parts.append(_part(unit, at))
        at += unit.tokens
    ids, positions, predict, targets, tokens, blocks = zip(*parts, strict=True)

    def joined(column: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate(column).astype(np.int64))

    return PackedRow(
        joined(ids),
        joined(positions),
        joined(predict),
        joined(targets),
        joined(tokens),
        list(blocks),
    )


def _part(unit: PackingUnit, start: int) -> tuple[Any, Any, Any, Any, Any, PackedBlock]:
    """What a unit adds to a `PackedRow`: ids, positions, predict, targets, tokens, its block.

    Args:
        start: the unit's first place in the row.
    """
    prompt = len(unit.prompt_ids_P)
    targets_M = np.concatenate(unit.responses)
    lengths_n = np.array([len(response) for response in unit.responses])
    begins_n = np.cumsum(lengths_n) - lengths_n
    nth_M = np.arange(len(targets_M)) - np.repeat(begins_n, lengths_n)
    # In the row each response lacks its last token, and so begins one place earlier per response.
    places_n = start + prompt + begins_n - np.arange(len(lengths_n))
    in_row_M = nth_M < np.repeat(lengths_n - 1, lengths_n)
    before_M = np.repeat(places_n, lengths_n) + nth_M - 1
    return (
        np.concatenate([unit.prompt_ids_P, targets_M[in_row_M]]),
        np.concatenate([np.arange(prompt), prompt + nth_M[in_row_M]]),
        np.where(nth_M == 0, start + prompt - 1, before_M),
        targets_M,
        np.repeat(unit.offsets, lengths_n) + nth_M,
        _block(start, prompt, places_n, lengths_n - 1),
    )


def _block(start: int, prompt: int, places_n: Ints, lengths_n: Ints) -> PackedBlock:
    """The block of responses that begin at these places in the row and have these lengths there."""
    columns_T = np.arange(lengths_n.max())
    real_nT = columns_T < lengths_n[:, None]
    gather_nT = np.where(real_nT, places_n[:, None] + columns_T, start)
    longest = len(columns_T)
    mask_TK = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(prompt)
    scatter_R = np.flatnonzero(real_nT)
    return PackedBlock(
        start, prompt, torch.from_numpy(gather_nT), torch.from_numpy(scatter_R), mask_TK
    )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    guerdon_blocks: Sequence[PackedBlock] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row: query [1, H, L, D], key and value [1, Hk, L, D] → [1, L, H, D].

    Raises:
        NotImplementedError: the model wants something else of its attention. (The learner then
            computes its samples one by one, by the model's own attention.)
    """
    for name in ("softcap", "s_aux", "sinks"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    window = kwargs.get("sliding_window")
    if guerdon_blocks is None or dropout:
        raise NotImplementedError("attention without blocks, or with dropout")
    how: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    pieces = []
    for block in guerdon_blocks:
        if window is not None and block.prompt + block.gather_nT.shape[1] > window:
            raise NotImplementedError("a sliding window shorter than the input")
        own = slice(block.start, block.start + block.prompt)
        pieces.append(
            F.scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, **how
            )
        )
        if len(block.scatter_R):
            pieces.append(_responses(block, query, key, value, own, how))
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _responses(
    block: PackedBlock, query: Tensor, key: Tensor, value: Tensor, own: slice, how: dict[str, Any]
) -> Tensor:
    """[1, H, R, D] for the R response tokens of a block, in the row's order."""
    count, longest = block.gather_nT.shape
    places = block.gather_nT.reshape(-1)

    def spread(tensor: Tensor) -> Tensor:
        """[n, H, T, D]."""
        _, heads, _, dim = tensor.shape
        picked = tensor[0].index_select(1, places)
        return picked.view(heads, count, longest, dim).transpose(0, 1)

    def with_prompt(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[:, :, own].expand(count, -1, -1, -1), spread(tensor)], dim=2)

    found = F.scaled_dot_product_attention(
        spread(query), with_prompt(key), with_prompt(value), attn_mask=block.mask_TK, **how
    )
    flat = found.transpose(0, 1).reshape(found.shape[1], count * longest, found.shape[3])
    return flat.index_select(1, block.scatter_R)[None]


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Make the attention known to `transformers`; repeating it is harmless."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
