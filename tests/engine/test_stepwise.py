"""Attention by two products and a softmax: the same numbers, in blocks of whatever size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.support import (
    Reference,
    cached_engine,
    engine_scores,
    first_logits,
    load,
    mixed_batch,
)
from tests.support.tiny import DECODERS, PACKABLE

from guerdon.reward.engine import attention, stepwise
from guerdon.reward.engine.attention_record import AttentionCall
from guerdon.reward.engine.engine import PackedEngine

BATCH = mixed_batch(np.random.default_rng(0), 30)


@pytest.fixture(params=[1, 700], ids=["one query a block", "small blocks"])
def everywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is computed step by step, with so many logits in a block."""
    monkeypatch.setattr(attention, "is_stepwise", lambda call, device: True)
    monkeypatch.setattr(stepwise, "CPU_LOGITS", request.param)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("architecture", PACKABLE)
def test_scores_are_those_of_plain_transformers(
    architecture: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(architecture)
    found = engine_scores(PackedEngine(load(folder)), BATCH)
    assert np.abs(found - Reference(folder).scores(BATCH)).max() < 1e-4


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("architecture", DECODERS)
def test_scores_out_of_the_cache_are_too(
    architecture: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(architecture)
    engine = cached_engine(folder)
    engine.compute(BATCH)
    second = engine.compute(BATCH)
    assert second.stats.cached_tokens > 0
    assert np.abs(first_logits(second) - Reference(folder).scores(BATCH)).max() < 1e-4


@pytest.mark.parametrize(
    ("dtype", "softcap", "stepwise_here"),
    [
        (torch.float32, None, False),
        (torch.float32, 50.0, True),
        (torch.bfloat16, None, True),
        (torch.float16, None, False),
    ],
)
def test_only_what_fused_kernels_do_worse(
    dtype: torch.dtype,
    softcap: float | None,
    stepwise_here: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stepwise, "_multiplies_bfloat16", lambda: True)
    call = AttentionCall(True, None, 1.0, softcap, 4, 2, 16, 16, dtype)
    assert stepwise.is_stepwise(call, torch.device("cpu")) is stepwise_here
    assert stepwise.is_stepwise(call, torch.device("cuda")) is (softcap is not None)
