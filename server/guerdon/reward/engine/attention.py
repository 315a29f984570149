"""Attention over a packed row, as an attention function of `transformers`.

`transformers` calls whatever is registered under `config._attn_implementation` with query, key and
value [1, heads, T, D] and passes keyword arguments of the model's forward call through, so the
segment table arrives as `guerdon_plan`. What differs between architectures arrives the same way:
`scaling`, `sliding_window`, `softcap`, and `is_causal` on the module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from guerdon.reward.engine.attention_record import AttentionCall, MaskFunction, note_call, note_mask
from guerdon.reward.engine.buckets import Bucket, make_buckets
from guerdon.reward.engine.device import is_ampere
from guerdon.reward.engine.plan import CacheUse, Segment
from guerdon.reward.engine.preemption import between_layers
from guerdon.reward.engine.prefix_cache import PrefixCache
from guerdon.reward.engine.stepwise import attend_stepwise, is_stepwise

PACKED = "guerdon_packed"
"""The name under which the attention is registered."""


@dataclass(slots=True, eq=False)
class _Gather:
    """The index tensors of one bucket."""

    bucket: Bucket
    queries: torch.Tensor
    keys: torch.Tensor
    valid: torch.Tensor
    """Flat places of the real queries in [B * Q]."""


@dataclass(frozen=True, slots=True, eq=False)
class Varlen:
    """What `torch.nn.attention.varlen` needs: segments in the row's order."""

    keys: torch.Tensor | None
    """Places of all keys, segment after segment; None when they are the row itself."""
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    max_queries: int
    max_keys: int


class CachedKeys:
    """The keys and values that one forward pass takes out of the prefix cache, and puts there.

    Layers are told apart by the order in which they are computed.
    """

    def __init__(self, cache: PrefixCache, use: CacheUse, device: torch.device) -> None:
        self._cache = cache
        self._layer = 0
        self._taken, self._kept, self._kept_at = (
            torch.from_numpy(places).to(device) for places in (use.taken, use.kept, use.kept_at)
        )

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of the next layer, [T, H, D], and after them those of the cache."""
        memory = self._cache.layer(self._layer, key, value)
        self._layer += 1
        if len(self._taken):
            key, value = (
                torch.cat([own, held.index_select(0, self._taken)])
                for own, held in zip((key, value), memory, strict=True)
            )
        if len(self._kept):
            for own, held in zip((key, value), memory, strict=True):
                held.index_copy_(0, self._kept_at, own.index_select(0, self._kept))
        return key, value


class AttentionPlan:
    """The segment table of one forward pass, made ready for the device once for all layers."""

    def __init__(
        self, segments: Sequence[Segment], device: torch.device, cached: CachedKeys | None = None
    ) -> None:
        self.segments = tuple(segments)
        self.device = device
        self.cached = cached
        self.between_layers = between_layers()
        """Called before the attention of each layer."""
        self._gathers: list[_Gather] | None = None
        self._back: torch.Tensor | None = None
        self._masks: dict[tuple[int, bool, int | None, torch.dtype], torch.Tensor] = {}
        self._varlen: Varlen | None = None

    def gathers(self) -> list[_Gather]:
        """One entry per attention call."""
        if self._gathers is None:
            self._gathers = [self._gather(b) for b in make_buckets(self.segments)]
        return self._gathers

    def _gather(self, bucket: Bucket) -> _Gather:
        valid = np.flatnonzero(bucket.valid_queries().ravel())
        tensors = (bucket.query_places().ravel(), bucket.key_places().ravel(), valid)
        return _Gather(bucket, *(torch.from_numpy(t).to(self.device) for t in tensors))

    def back(self) -> torch.Tensor:
        """Order that takes the buckets' real outputs, one after the other, to the row."""
        if self._back is None:
            places = torch.cat([g.queries[g.valid] for g in self.gathers()])
            self._back = torch.argsort(places)
        return self._back

    def mask(self, index: int, call: AttentionCall) -> torch.Tensor:
        """What to add to a bucket's logits, [1 or B, 1 or Q, K]: 0, or −∞ for a hidden key."""
        key = (index, call.causal, call.window, call.dtype)
        if key not in self._masks:
            bucket = self.gathers()[index].bucket
            allowed = bucket.allowed(causal=call.causal, window=call.window)
            mask = torch.zeros(allowed.shape, dtype=call.dtype)
            mask.masked_fill_(torch.from_numpy(~allowed), -torch.inf)
            self._masks[key] = mask.to(self.device)
        return self._masks[key]

    def varlen(self) -> Varlen:
        """The segment table as cumulative lengths."""
        if self._varlen is None:
            lengths = [s.length for s in self.segments]
            reach = [s.reach for s in self.segments]
            context = any(s.context for s in self.segments)
            keys = np.concatenate([s.keys() for s in self.segments]) if context else None
            self._varlen = Varlen(
                keys=None if keys is None else torch.from_numpy(keys).to(self.device),
                cu_queries=self._cumulative(lengths),
                cu_keys=self._cumulative(reach),
                max_queries=max(lengths),
                max_keys=max(reach),
            )
        return self._varlen

    def _cumulative(self, lengths: list[int]) -> torch.Tensor:
        return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=self.device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    guerdon_plan: AttentionPlan | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention per segment: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    Returns:
        The output [1, T, Hq, Dv], and no attention weights.

    Raises:
        ValueError: the architecture asks for something that is not computed here; the
            probes see it at load and the model runs in padded batches.
    """
    if guerdon_plan is None:
        raise ValueError("the architecture does not pass the segment table on to its attention")
    guerdon_plan.between_layers()
    if attention_mask is not None or dropout or query.shape[0] != 1:
        raise ValueError("packed attention takes one row, no mask and no dropout")
    extra = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if extra:
        raise ValueError(f"packed attention does not compute {', '.join(extra)}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    call = AttentionCall(
        causal=causal,
        window=sliding_window,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap,
        heads=query.shape[1],
        key_heads=key.shape[1],
        size=query.shape[-1],
        value_size=value.shape[-1],
        dtype=query.dtype,
    )
    note_call(call)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if guerdon_plan.cached is not None:
        key, value = guerdon_plan.cached.extend(key, value)
    return attend(query, key, value, guerdon_plan, call)[None], None


# Sinks, learned biases and the like of other architectures: never ignore them.
_UNKNOWN = ("position_bias", "s_aux", "sinks", "head_mask", "cache", "block_mask")


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    call: AttentionCall,
) -> torch.Tensor:
    """Attention over a row, by the kernel that serves.

    Args:
        query: [T, H, D].
        key, value: [T or more, H, D]: the row's, and after them those of the prefix cache.

    Returns:
        The output, [T, H, D].
    """
    if _varlen_fits(query, value, call.softcap):
        return _varlen(query, key, value, plan, call.causal, call.window, call.scale)
    return _bucketed(query, key, value, plan, call)


def _bucketed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    call: AttentionCall,
) -> torch.Tensor:
    """One scaled-dot-product call per bucket; see `attend`."""
    outputs = []
    gathers = plan.gathers()
    for index, gather in enumerate(gathers):
        bucket = gather.bucket
        if bucket.is_whole:
            start, stop = bucket.segments[0].start, bucket.segments[0].start + bucket.queries
            q, k, v = (x[start:stop].unsqueeze(0) for x in (query, key, value))
        else:
            size = len(bucket.segments)
            q = query.index_select(0, gather.queries).view(size, bucket.queries, *query.shape[1:])
            k = key.index_select(0, gather.keys).view(size, bucket.keys, *key.shape[1:])
            v = value.index_select(0, gather.keys).view(size, bucket.keys, *value.shape[1:])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = _attend(q, k, v, plan, index, call)
        out = out.transpose(1, 2).flatten(0, 1)
        padded = len(gather.valid) < len(out)
        outputs.append(out.index_select(0, gather.valid) if padded else out)
    if len(gathers) == 1 and gathers[0].bucket.is_whole:
        return outputs[0]
    return torch.cat(outputs).index_select(0, plan.back())


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    index: int,
    call: AttentionCall,
) -> torch.Tensor:
    """One bucket's call, q [B, Hq, Q, D], k and v [B, Hkv, K, D]."""
    bucket = plan.gathers()[index].bucket
    uniform = bucket.is_uniform(causal=call.causal, window=call.window)
    if is_stepwise(call, plan.device):
        return attend_stepwise(
            q,
            k,
            v,
            None if uniform else plan.mask(index, call),
            reach=bucket.context_length + 1 if call.causal else bucket.keys,
            scale=call.scale,
            softcap=call.softcap,
        )
    # Torch's causal attention is from the top left corner: right without contexts.
    plain = uniform and not (call.causal and bucket.context_length)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if plain else plan.mask(index, call).unsqueeze(1),
        is_causal=plain and call.causal,
        scale=call.scale,
        enable_gqa=call.heads != call.key_heads,
    )


def _varlen_fits(query: torch.Tensor, value: torch.Tensor, softcap: float | None) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and is_ampere(query.device)
    )


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    causal: bool,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """One flash-attention call for the whole row on CUDA; see `attend`.

    A segment's causal mask stands at the bottom right of its keys, so it sees its whole
    context. Windows there are inclusive, transformers' are not.
    """
    from torch.nn.attention.varlen import varlen_attn

    table = plan.varlen()
    if table.keys is not None:
        key, value = key.index_select(0, table.keys), value.index_select(0, table.keys)
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if _has_parameter(varlen_attn, "enable_gqa"):
            grouped["enable_gqa"] = True
        else:  # torch 2.11
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    left = -1 if window is None else window - 1
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        table.cu_queries,
        table.cu_keys,
        table.max_queries,
        table.max_keys,
        scale=scale,
        window_size=(left, 0 if causal else left),
        **grouped,
    )
    assert isinstance(out, torch.Tensor)
    return out


@functools.cache
def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _no_mask(
    *args: Any, mask_function: MaskFunction, local_size: int | None = None, **kwargs: Any
) -> None:
    """Segments take the place of masks."""
    note_mask(mask_function, local_size)


def register() -> None:
    """Make the attention known to `transformers`; repeating it is harmless."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
