"""The CUDA path: its segment table here, and the same correctness tests where a GPU is."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from tests.engine.support import Reference, engine_scores, load, mixed_batch
from tests.engine.varlen import varlen_by_definition
from tests.support.tiny import PACKABLE

from guerdon.reward.engine import attention
from guerdon.reward.engine.attention_record import AttentionCall
from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine
from guerdon.reward.engine.kernels import check_kernels
from guerdon.reward.engine.plan import Segment
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import ComputeMode

Make = Callable[..., Path]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("architecture", [a for a in PACKABLE if a != "gemma2"])
def test_the_segment_table_says_the_same_to_varlen(
    architecture: str, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    @functools.wraps(varlen_by_definition)  # with its signature
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


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("heads", [(8, 2), (6, 6), (8, 1)])
@pytest.mark.parametrize("size", [8, 64, 96, 128, 256])
def test_the_kernels_of_a_gpu_compute_what_they_should(
    size: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    call = AttentionCall(
        causal=True,
        window=None,
        scale=size**-0.5,
        softcap=None,
        heads=heads[0],
        key_heads=heads[1],
        size=size,
        value_size=size,
        dtype=dtype,
    )
    shared = [Segment(0, 900), Segment(900, 200, (range(900),)), Segment(1100, 1, (range(900),))]
    alone = [Segment(0, 1500), Segment(1500, 1), Segment(1501, 77)]
    for window in (None, 3, 512):
        for causal, tables in ((True, [shared, alone]), (False, [alone])):
            check_kernels(
                [replace(call, window=window, causal=causal)], tables, torch.device("cuda")
            )
    check_kernels([replace(call, softcap=50.0)], [shared], torch.device("cuda"))


ASSERTS = """
import torch
from guerdon.reward.engine.device import interpret_error
from guerdon.reward.types import DeviceLost
try:
    table = torch.zeros(4, device="cuda")
    table[torch.tensor([9], device="cuda")].cpu()
except Exception as error:
    assert isinstance(interpret_error(error, torch.device("cuda")), DeviceLost), repr(error)
    print("lost")
"""


@needs_gpu
@pytest.mark.cuda
def test_a_failed_assertion_on_the_device_is_a_device_that_is_lost() -> None:
    """In a process of its own: no other test could use the GPU in this one afterwards."""
    found = subprocess.run(
        [sys.executable, "-c", ASSERTS], capture_output=True, text=True, check=False
    )
    assert "lost" in found.stdout, found.stderr


@needs_gpu
@pytest.mark.cuda
def test_mean_pooling_gives_the_same_bits_on_a_gpu(checkpoint: Make) -> None:
    engine = PackedEngine(load(checkpoint("modernbert", classifier_pooling="mean")).to("cuda"))
    batch = mixed_batch(np.random.default_rng(3), 60)
    first = engine_scores(engine, batch)
    for _ in range(5):
        np.testing.assert_array_equal(engine_scores(engine, batch), first)
