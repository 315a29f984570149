"""The CUDA path: its segment table here, and the same correctness tests where a GPU is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F
from tests.engine.support import Reference, engine_scores, load, mixed_batch
from tests.support.tiny import ARCHITECTURES

from guerdon.reward.engine import attention
from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import ComputeMode

Make = Callable[..., Path]

PACKABLE = tuple(a for a in ARCHITECTURES if a != "deberta-v2")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


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
    enable_gqa: bool,
) -> torch.Tensor:
    """`varlen_attn` as its documentation and flash-attention's define it, in plain steps.

    Query i of a segment stands at key i + (keys - queries); a window (l, r) lets it see
    from l keys before to r keys after, both inclusive, and -1 is without limit.
    """
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


@pytest.mark.parametrize("architecture", [a for a in PACKABLE if a != "gemma2"])
def test_the_segment_table_says_the_same_to_varlen(
    architecture: str, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return varlen_by_definition(*args, **kwargs)

    monkeypatch.setattr(attention, "_varlen_fits", lambda q, v, softcap: softcap is None)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", counted)
    folder = checkpoint(architecture)
    batch = mixed_batch(np.random.default_rng(0), 16)
    found = engine_scores(PackedEngine(load(folder)), batch)
    assert len(calls) == 2, "one call for each layer"
    np.testing.assert_allclose(found, Reference(folder).scores(batch), atol=1e-4)


def test_varlen_is_for_half_precision_on_a_gpu_without_a_soft_cap() -> None:
    q = torch.zeros(1, 4, 8, 16, dtype=torch.bfloat16)
    assert not attention._varlen_fits(q, q, None)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("kind", [PackedEngine, PaddedEngine])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_float32_on_a_gpu(architecture: str, kind: type[Engine], checkpoint: Make) -> None:
    folder = checkpoint(architecture)
    batch = mixed_batch(np.random.default_rng(1), 32)
    found = engine_scores(kind(load(folder).to("cuda")), batch)
    np.testing.assert_allclose(found, Reference(folder).scores(batch), atol=1e-4)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_half_precision_on_a_gpu(architecture: str, dtype: torch.dtype, checkpoint: Make) -> None:
    folder = checkpoint(architecture)
    batch = mixed_batch(np.random.default_rng(2), 120, longest=60)
    exact = Reference(folder).scores(batch)
    plain = Reference(folder, dtype).scores(batch)
    selected = select_engine(load(folder, dtype).to("cuda"), EngineSettings(), 256)
    assert selected.engine.mode is ComputeMode.PACKED, selected.reason
    found = engine_scores(selected.engine, batch)
    own = np.sqrt(np.mean((plain - exact) ** 2))
    assert np.sqrt(np.mean((found - exact) ** 2)) <= 1.1 * own
