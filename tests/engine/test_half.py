"""In bfloat16 the engines are no less exact than plain `transformers` in bfloat16.

Measured as the root mean square, over a few hundred sequences of random lengths, of the
difference from plain transformers in float32 *with the same rounded weights*: the error of
rounding the weights is the same for all, and would hide that of computing. Two ways of
rounding never give the very same error, so an engine's may exceed plain's by a tenth;
without any error of its own, the sampling error of such a ratio is a few per cent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.support import (
    Reference,
    Scores,
    cached_engine,
    engine_scores,
    first_logits,
    load,
    mixed_batch,
)
from tests.support.tiny import ARCHITECTURES, DECODERS, PACKABLE

from guerdon.reward.engine import attention
from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine

ALLOWANCE = 1.1

CASES = [(a, PackedEngine) for a in PACKABLE] + [(a, PaddedEngine) for a in ARCHITECTURES]


BATCH = mixed_batch(np.random.default_rng(0), 120, longest=60)


@pytest.fixture(scope="module")
def plain_scores(checkpoint: Callable[..., Path]) -> Callable[[str], tuple[Scores, Scores]]:
    """Plain transformers' scores of an architecture, in float32 and bfloat16."""

    @functools.cache
    def scores(architecture: str) -> tuple[Scores, Scores]:
        folder = checkpoint(architecture, dtype=torch.bfloat16)
        return Reference(folder).scores(BATCH), Reference(folder, torch.bfloat16).scores(BATCH)

    return scores


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_error_is_no_larger_than_plain_transformers(
    architecture: str,
    kind: type[Engine],
    checkpoint: Callable[..., Path],
    plain_scores: Callable[[str], tuple[Scores, Scores]],
) -> None:
    folder = checkpoint(architecture, dtype=torch.bfloat16)
    found = engine_scores(kind(load(folder, torch.bfloat16)), BATCH)
    assert_no_larger(found, *plain_scores(architecture))


@pytest.mark.parametrize("architecture", PACKABLE)
def test_error_step_by_step_is_no_larger_either(
    architecture: str,
    checkpoint: Callable[..., Path],
    plain_scores: Callable[[str], tuple[Scores, Scores]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on processors that multiply in bfloat16, whichever computes here."""
    monkeypatch.setattr(attention, "is_stepwise", lambda call, device: True)
    folder = checkpoint(architecture, dtype=torch.bfloat16)
    found = engine_scores(PackedEngine(load(folder, torch.bfloat16)), BATCH)
    assert_no_larger(found, *plain_scores(architecture))


@pytest.mark.parametrize("architecture", DECODERS)
def test_error_out_of_the_cache_is_no_larger_either(
    architecture: str,
    checkpoint: Callable[..., Path],
    plain_scores: Callable[[str], tuple[Scores, Scores]],
) -> None:
    engine = cached_engine(checkpoint(architecture, dtype=torch.bfloat16), dtype=torch.bfloat16)
    first, second = (engine.compute(BATCH) for _ in range(2))
    assert first.stats.cached_tokens == 0 < second.stats.cached_tokens
    assert_no_larger(first_logits(second), *plain_scores(architecture))


def assert_no_larger(found: Scores, exact: Scores, plain: Scores) -> None:
    """Scores err no more than plain transformers' do in bfloat16."""
    own = np.sqrt(np.mean((plain - exact) ** 2))
    assert own > 1e-4, "bfloat16 must differ from float32 for this to say anything"
    assert np.sqrt(np.mean((found - exact) ** 2)) <= ALLOWANCE * own


def test_scores_are_not_rounded_to_bfloat16(checkpoint: Callable[..., Path]) -> None:
    """A head in bfloat16 would give 256 scores between 1 and 2, and ties among good answers."""
    batch = mixed_batch(np.random.default_rng(1), 20)
    found = engine_scores(PackedEngine(load(checkpoint("llama"), torch.bfloat16)), batch)
    assert (torch.tensor(found).bfloat16().double().numpy() != found).mean() > 0.9
