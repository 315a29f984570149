"""Attention as two matrix products and a softmax between them, where no fused kernel is better."""

from __future__ import annotations

import functools

import torch

from guerdon.reward.engine.attention_record import AttentionCall

CPU_LOGITS = 1 << 20
"""Logits of one block, which a processor's cache holds (profiled; see `docs/performance.md`)."""
GPU_LOGITS = 1 << 26
"""Logits of one block on a GPU: 256 MiB in float32."""


def is_stepwise(call: AttentionCall, device: torch.device) -> bool:
    """Whether a call is computed step by step, which rounds its logits to its own type.

    No fused kernel of torch's caps logits. In bfloat16, the one for CPUs is slower than in float32
    where they have AVX512_BF16 and no AMX.
    """
    slow = device.type == "cpu" and call.dtype == torch.bfloat16 and _multiplies_bfloat16()
    return call.softcap is not None or slow


@functools.cache
def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def attend_stepwise(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    reach: int,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention, computed for some sequences and some of their queries at a time.

    Logits are rounded to the inputs' type, as in the eager attention of `transformers`.

    Args:
        query: [B, Hq, Q, D].
        key: [B, Hkv, K, D].
        value: [B, Hkv, K, Dv].
        mask: added to the logits, [1 or B, 1 or Q, K]: 0, or −∞ for a hidden key; None where
            `reach` says it all.
        reach: keys that the first query may see; each further query may see one more.
        scale: of the logits.
        softcap: where not None, logits are softcap · tanh(logits / softcap): Gemma 2
            (arXiv:2408.00118), section 2.

    Returns:
        The output, [B, Hq, Q, Dv].
    """
    batch, heads, queries, _ = query.shape
    key_heads, keys = key.shape[1:3]
    groups = heads // key_heads
    key, value = key.contiguous(), value.contiguous()
    out = query.new_empty(batch, queries, key_heads, groups, value.shape[-1])
    most = (CPU_LOGITS if query.device.type == "cpu" else GPU_LOGITS) // heads
    step = min(queries, max(1, most // keys))
    for begin in range(0, queries, step):
        end = min(begin + step, queries)
        seen = min(keys, reach + end - 1)
        size = max(1, most // ((end - begin) * seen))
        for first in range(0, batch, size):
            chosen = slice(first, first + size)
            q, k, v = query[chosen, :, begin:end], key[chosen, :, :seen], value[chosen, :, :seen]
            q = q.reshape(-1, groups * (end - begin), q.shape[-1])
            k, v = k.flatten(0, 1), v.flatten(0, 1)
            logits = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            shown = mask if mask is None or len(mask) == 1 else mask[chosen]
            _hide(logits.view(-1, heads, end - begin, seen), shown, begin, reach)
            found = torch.bmm(torch.softmax(logits, -1), v)
            found = found.view(-1, key_heads, groups, end - begin, v.shape[-1])
            out[chosen, begin:end] = found.permute(0, 3, 1, 2, 4)
    return out.flatten(2, 3).transpose(1, 2)


def _hide(logits: torch.Tensor, mask: torch.Tensor | None, begin: int, reach: int) -> None:
    """Add −∞ where a key is hidden from a query, in place.

    Args:
        logits: [B, Hq, Q, K], of the queries from `begin` on and the first keys.
        mask, reach: as in `attend_stepwise`.
    """
    queries, keys = logits.shape[-2:]
    if mask is None:
        newest = logits[..., reach - 1 + begin :]
        newest.add_(torch.full_like(newest[0, 0], -torch.inf).triu_(1))
    else:
        own = mask if mask.shape[1] == 1 else mask[:, begin : begin + queries]
        logits.add_(own[:, None, :, :keys])
