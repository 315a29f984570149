"""In float32 every score is that of plain `transformers`, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.support import (
    Reference,
    engine_scores,
    item,
    load,
    mixed_batch,
    sequences,
    words,
)
from tests.support.tiny import ARCHITECTURES, DECODERS, EOS, PACKABLE, PAD, SPECIAL_TOKENS, WINDOW

from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine
from guerdon.reward.types import EncodedItem

Make = Callable[..., Path]

TOLERANCE = 1e-4
CASES = [(a, PackedEngine) for a in PACKABLE] + [(a, PaddedEngine) for a in ARCHITECTURES]

VARIANTS = {
    "modernbert-mean": ("modernbert", {"classifier_pooling": "mean"}),
    "bert-positions": ("bert", {"seed": 3}),
    "phi3-window": ("phi3", {"sliding_window": WINDOW}),
    "qwen2-window": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gpt2-inverse-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gemma3-bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma2-grouped-alone": ("gemma2", {"num_key_value_heads": 4}),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [3.0] * 8,
                "original_max_position_embeddings": 32,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
}


def close(found: object, wanted: object) -> None:
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def engine_of(kind: type[Engine], folder: Path) -> Engine:
    return kind(load(folder))


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_every_batch_size(architecture: str, kind: type[Engine], checkpoint: Make) -> None:
    folder = checkpoint(architecture)
    engine, reference = engine_of(kind, folder), Reference(folder)
    rng = np.random.default_rng(0)
    batch = mixed_batch(rng, 64)
    wanted = reference.scores(batch)
    assert wanted.std() > 0.3, "scores that hardly vary would hide faults"
    per_item = np.split(wanted, np.cumsum([i.sequences for i in batch])[:-1])
    for size in (1, 2, 7, 32, 64):
        close(engine_scores(engine, batch[:size]), np.concatenate(per_item[:size]))


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_order_and_neighbours_do_not_matter(
    architecture: str, kind: type[Engine], checkpoint: Make
) -> None:
    folder = checkpoint(architecture)
    engine, reference = engine_of(kind, folder), Reference(folder)
    rng = np.random.default_rng(1)
    batch = mixed_batch(rng, 12)
    for _ in range(3):
        order = rng.permutation(len(batch))
        shuffled = [batch[n] for n in order]
        close(engine_scores(engine, shuffled), reference.scores(shuffled))


@pytest.mark.parametrize("architecture", PACKABLE)
def test_shared_or_not_the_score_is_the_same(architecture: str, checkpoint: Make) -> None:
    folder = checkpoint(architecture)
    engine, reference = engine_of(PackedEngine, folder), Reference(folder)
    rng = np.random.default_rng(2)
    # The prompt is longer than the window, and the window spans prompt and response.
    group = item(rng, 40, [1, 3, 20, 33, 8])
    empty = np.zeros(0, dtype=np.int32)
    alone = [EncodedItem(prefix=empty, suffixes=(s,), truncated=(0,)) for s in sequences([group])]
    wanted = reference.scores([group])
    close(engine_scores(engine, [group]), wanted)
    close(engine_scores(engine, alone), wanted)
    close(
        engine_scores(engine, [*alone, group, group.part(1, 3)]), [*wanted, *wanted, *wanted[1:3]]
    )
    computed = engine.compute([group])
    if architecture in DECODERS:
        assert computed.reused == [[0, 40, 40, 40, 40]]
        assert computed.stats.computed_tokens == group.tokens
        assert computed.stats.reused_tokens == 160
    else:  # in an encoder the prompt sees the response
        assert computed.reused == [[0] * 5]
        assert computed.stats.computed_tokens == sum(group.lengths())
    assert computed.stats.padding_tokens == 0
    assert computed.stats.sequences == 5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [PackedEngine, PaddedEngine])
def test_variants(variant: str, kind: type[Engine], checkpoint: Make) -> None:
    architecture, settings_ = VARIANTS[variant]
    folder = checkpoint(architecture, **settings_)
    engine, reference = engine_of(kind, folder), Reference(folder)
    batch = mixed_batch(np.random.default_rng(4), 16)
    close(engine_scores(engine, batch), reference.scores(batch))


@pytest.mark.parametrize("kind", [PackedEngine, PaddedEngine])
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_last_true_token_is_read_when_pad_is_eos(
    architecture: str, kind: type[Engine], checkpoint: Make
) -> None:
    eos = SPECIAL_TOKENS.index(EOS)
    folder = checkpoint(architecture, pad_token_id=eos)
    engine, reference = engine_of(kind, folder), Reference(folder)
    rng = np.random.default_rng(5)
    batch = []
    for length in (4, 19, 30, 11):
        tokens = words(rng, length)
        tokens[[length // 2, -1]] = eos  # in the middle and at the end
        batch.append(EncodedItem(prefix=tokens[:2], suffixes=(tokens[2:],), truncated=(0,)))
    close(engine_scores(engine, batch), reference.scores(batch))


@pytest.mark.parametrize("kind", [PackedEngine, PaddedEngine])
def test_a_padding_token_in_the_text_of_roberta(kind: type[Engine], checkpoint: Make) -> None:
    """RoBERTa gives such a token no position of its own; so must every engine."""
    folder = checkpoint("roberta")
    engine, reference = engine_of(kind, folder), Reference(folder)
    tokens = words(np.random.default_rng(6), 30)
    tokens[[7, 8, 20]] = SPECIAL_TOKENS.index(PAD)
    batch = [EncodedItem(prefix=tokens[:9], suffixes=(tokens[9:], tokens[9:20]), truncated=(0, 0))]
    close(engine_scores(engine, batch), reference.scores(batch))


def test_padding_is_counted(checkpoint: Make) -> None:
    engine = PaddedEngine(load(checkpoint("llama")), max_batch_tokens=100)
    rng = np.random.default_rng(7)
    batch = [item(rng, 0, [50]), item(rng, 0, [10]), item(rng, 5, [15, 35])]
    # Longest first, at most 100 tokens with padding: 50 + 40, then 20 + 10.
    stats = engine.compute(batch).stats
    assert stats.computed_tokens == 2 * 50 + 2 * 20
    assert stats.padding_tokens == stats.computed_tokens - (50 + 10 + 20 + 40)
    assert stats.reused_tokens == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "modernbert"])
def test_deterministic_mode_gives_the_same_bits_in_any_company(
    architecture: str, checkpoint: Make
) -> None:
    folder = checkpoint(architecture)
    engine = PackedEngine(load(folder, torch.bfloat16), deterministic=True)
    batch = mixed_batch(np.random.default_rng(8), 8)
    together = engine_scores(engine, batch)
    alone = np.concatenate([engine_scores(engine, [one]) for one in batch])
    assert together.tolist() == alone.tolist()


_lengths = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.integers(1, 60), min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "modernbert", "roberta"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shapes=_lengths, seed=st.integers(0, 2**16))
def test_any_batch(
    architecture: str, shapes: list[tuple[int, list[int]]], seed: int, checkpoint: Make
) -> None:
    folder = checkpoint(architecture)
    rng = np.random.default_rng(seed)
    batch = [item(rng, prefix, suffixes) for prefix, suffixes in shapes]
    engine = engine_of(PackedEngine, folder)
    close(engine_scores(engine, batch), Reference(folder).scores(batch))
