"""`torch.nn.attention.varlen.varlen_attn` as it is documented, in plain steps on any device."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F


def varlen_by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`varlen_attn` as its documentation and flash-attention's define it.

    Query i of a segment stands at key i + (keys - queries); a window (l, r) lets it see
    from l keys before to r keys after, both inclusive, and -1 is without limit.
    """
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("query and key must have the same number of heads")
    outputs = []
    spans = zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True)
    for (q0, q1), (k0, k1) in spans:
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        place = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        behind = place - torch.arange(k1 - k0)[None]
        left, right = window_size
        allowed = torch.ones_like(behind, dtype=torch.bool)
        allowed &= (behind <= left) | torch.tensor(left == -1)
        allowed &= (-behind <= right) | torch.tensor(right == -1)
        parts = (query[q0:q1], key[k0:k1], value[k0:k1])
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def varlen_of_torch_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same with the signature of torch 2.11: no `enable_gqa`."""
    assert scale is not None
    return varlen_by_definition(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )
