"""What a model asks of its attention in a forward pass, recorded while it is probed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

MaskFunction = Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]
"""A mask of `transformers.masking_utils`: batch, head, query and key places to "may attend"."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """All that tells one layer's attention from another's, apart from the numbers in it."""

    causal: bool
    window: int | None
    """A key is seen at a distance below this; None is without limit."""
    scale: float
    softcap: float | None
    heads: int
    key_heads: int
    """Heads of keys and values; each serves `heads // key_heads` query heads."""
    size: int
    """Numbers in a query, and in a key."""
    value_size: int
    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class AttentionRecord:
    """What a model asked for in a forward pass."""

    masks: list[tuple[MaskFunction, int | None]] = field(default_factory=list)
    """Each mask that was asked for, and the window or chunk in it."""
    calls: set[AttentionCall] = field(default_factory=set)
    """Each kind of attention that was asked for."""
    token_bytes: int = 0
    """Bytes of the keys and values of one token, all layers together."""

    def lost_mask(self) -> str:
        """Empty if every mask is one that some layer's attention computed, else a reason.

        Some architectures put their window (or a chunk) into the mask alone. Packed, it
        would be lost, and only sequences longer than it would show that.
        """
        for function, size in self.masks:
            length = 2 * (size or 8) + 3
            q = torch.tensor([0, length // 2, length - 1])[:, None]
            k = torch.arange(length)[None]
            wanted = torch.as_tensor(function(0, 0, q, k)).expand(len(q), length)
            if not any(wanted.equal(_seen(q, k, call)) for call in self.calls):
                what = f" (a window or chunk of {size} tokens)" if size else ""
                return f"the architecture masks more than it tells its attention{what}"
        return ""


def _seen(q: torch.Tensor, k: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    near = torch.ones_like(q - k, dtype=torch.bool)
    near = near if call.window is None else (q - k).abs() < call.window
    return near & (k <= q) if call.causal else near


class _Watch(threading.local):
    asked: AttentionRecord | None = None


_watch = _Watch()


@contextmanager
def record_attention() -> Iterator[AttentionRecord]:
    """What packed forward passes of this thread ask for while it lasts.

    To be checked on one sequence alone: for several, `transformers` puts its own idea of
    where they part into the masks.
    """
    _watch.asked = AttentionRecord()
    try:
        yield _watch.asked
    finally:
        _watch.asked = None


def note_mask(function: MaskFunction, size: int | None) -> None:
    """Record a mask, where this thread is watched."""
    if _watch.asked is not None:
        _watch.asked.masks.append((function, size))


def note_call(call: AttentionCall) -> None:
    """Record a call of the attention, where this thread is watched."""
    if _watch.asked is not None:
        _watch.asked.calls.add(call)
        numbers = call.key_heads * (call.size + call.value_size)
        _watch.asked.token_bytes += numbers * call.dtype.itemsize
