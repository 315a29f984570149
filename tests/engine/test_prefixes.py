"""Equal beginnings are computed once, in a batch and from batch to batch, and change nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.support import (
    Reference,
    cached_engine,
    engine_scores,
    item,
    load,
    sequences,
    words,
)
from tests.support.tiny import DECODERS

from guerdon.reward.engine import attention
from guerdon.reward.engine.engine import PackedEngine
from guerdon.reward.engine.plan import LEAST_SHARED, lay_out
from guerdon.reward.engine.prefix_cache import BLOCK, PrefixCache
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import BatchStats, EncodedItem
from guerdon.serving.errors import CheckpointRefused

Make = Callable[..., Path]

TOLERANCE = 1e-4
NOTHING = np.zeros(0, dtype=np.int32)


def alone(*parts: Any) -> EncodedItem:
    """An item of one response, whose prompt is all parts but the last."""
    return EncodedItem(
        prefix=np.concatenate([NOTHING, *parts[:-1]]), suffixes=(parts[-1],), truncated=(0,)
    )


def stats(engine: PackedEngine, items: Sequence[EncodedItem]) -> BatchStats:
    return engine.compute(items).stats


# Texts as paths through a tree: each takes one of three continuations of its beginning.
_paths = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.booleans()),
    min_size=1,
    max_size=14,
)
_pieces = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def texts(paths: list[tuple[list[int], bool]], pieces: list[int]) -> list[EncodedItem]:
    """Items of a tree; a group of all three last pieces where the flag says so."""

    def piece(path: Sequence[int]) -> Any:
        return words(np.random.default_rng([*path, len(path)]), pieces[len(path) % len(pieces)])

    items = []
    for path, group in paths:
        prefix = np.concatenate([NOTHING, *(piece(path[:n]) for n in range(1, len(path)))])
        ends = (0, 1, 2) if group else (path[-1],)
        suffixes = tuple(piece([*path[:-1], end]) for end in ends)
        items.append(EncodedItem(prefix=prefix, suffixes=suffixes, truncated=(0,) * len(ends)))
    return items


@settings(max_examples=200, deadline=None)
@given(paths=_paths, pieces=_pieces)
def test_a_row_holds_every_sequence(paths: list[tuple[list[int], bool]], pieces: list[int]) -> None:
    items = texts(paths, pieces)
    row = lay_out(items, lambda tokens: np.arange(len(tokens)), share=True)
    assert row.stats.computed_tokens == len(row.tokens) == sum(s.length for s in row.segments)
    whole = sequences(items)
    for tokens, places in zip(whole, row.sequences, strict=True):
        assert row.tokens[places].tolist() == tokens.tolist()
        assert row.positions[places].tolist() == list(range(len(tokens)))
    # Each segment attends to what came before it in a sequence, and to nothing else.
    seen = {tuple(places[: n + 1]) for places in row.sequences for n in range(len(places))}
    assert all(tuple(segment.keys()) in seen for segment in row.segments)
    assert sum(row.reused) == sum(map(len, whole)) - len(row.tokens)


def common(before: Sequence[int], after: Sequence[int]) -> int:
    """How many numbers two lists begin with in common."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )


@settings(max_examples=200, deadline=None)
@given(paths=_paths, pieces=_pieces)
def test_nothing_long_is_computed_twice(
    paths: list[tuple[list[int], bool]], pieces: list[int]
) -> None:
    """Of two neighbours in sorted order the second computes what is its own, and a few tokens."""
    items = texts(paths, pieces)
    row = lay_out(items, lambda tokens: np.arange(len(tokens)), share=True)
    ordered = sorted(tokens.tolist() for tokens in sequences(items))
    own = [len(after) - common(before, after) for before, after in pairwise(ordered)]
    own.append(len(ordered[0]))
    depth = max(len(path) for path, _ in paths)
    assert row.stats.computed_tokens <= sum(own) + len(ordered) * depth * (LEAST_SHARED - 1)


@functools.cache
def loaded(folder: Path, blocks: int | None) -> tuple[PackedEngine, Reference]:
    return cached_engine(folder, blocks=blocks), Reference(folder)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("blocks", [3, None])
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(paths=_paths, pieces=_pieces, batch=st.integers(1, 5))
def test_scores_are_the_references(
    architecture: str,
    blocks: int | None,
    paths: list[tuple[list[int], bool]],
    pieces: list[int],
    batch: int,
    checkpoint: Make,
) -> None:
    """In batches of any size, twice over, with much room in the cache and with hardly any."""
    engine, reference = loaded(checkpoint(architecture), blocks)
    items = texts(paths, pieces)
    wanted = reference.scores(items)
    for _ in range(2):
        parts = [items[n : n + batch] for n in range(0, len(items), batch)]
        found = np.concatenate([engine_scores(engine, part) for part in parts])
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_answers_that_come_one_by_one_cost_little_more_than_a_group(checkpoint: Make) -> None:
    engine = cached_engine(checkpoint("llama"))
    rng = np.random.default_rng(0)
    groups = [item(rng, 100, [15] * 8) for _ in range(8)]
    grouped = sum(group.tokens for group in groups)
    one_by_one = [group.part(j, j + 1) for j in range(8) for group in groups]
    computed = [stats(engine, [one]) for one in one_by_one]
    assert sum(s.computed_tokens for s in computed) <= 1.3 * grouped
    # Each answer after the first takes the prompt's whole blocks out of the cache.
    assert [s.cached_tokens for s in computed[8:]] == [100 // BLOCK * BLOCK] * 56
    assert all(s.reused_tokens == s.cached_tokens for s in computed)


def test_an_answer_that_grows_costs_little_more_than_once(checkpoint: Make) -> None:
    engine = cached_engine(checkpoint("llama", max_positions=1024))
    rng = np.random.default_rng(1)
    prompt, answer = words(rng, 40), words(rng, 512)
    grown = [alone(prompt, answer[:n]) for n in range(64, 513, 64)]
    assert sum(stats(engine, [one]).computed_tokens for one in grown) <= 1.5 * (40 + 512)


def test_equal_texts_are_computed_once(checkpoint: Make) -> None:
    folder = checkpoint("mistral")
    engine = PackedEngine(load(folder))
    text = words(np.random.default_rng(2), 30)
    batch = [alone(text[:n], text[n:]) for n in (5, 20, 29)]
    assert stats(engine, batch).computed_tokens == 30
    np.testing.assert_allclose(
        engine_scores(engine, batch), Reference(folder).scores(batch), atol=TOLERANCE
    )


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = PrefixCache(4 * BLOCK, 1)

    def keep(tokens: Any) -> list[int]:
        with cache.batch():
            blocks, new = cache.keep(tokens, [])
            cache.end_batch(reversed(blocks))
        return [place for place, _ in new]

    old, new = (np.arange(n, n + 2 * BLOCK, dtype=np.int32) for n in (0, 1000))
    newest = np.arange(2000, 2000 + 3 * BLOCK, dtype=np.int32)
    assert keep(old) == keep(new) == [0, BLOCK]
    assert keep(old) == [], "used again"
    assert keep(newest) == [0, BLOCK, 2 * BLOCK]
    assert len(cache.find(newest, [])) == 3
    assert cache.find(new, []) == []
    assert len(cache.find(old, [])) == 1, "its end made room, not its beginning"


def test_a_batch_larger_than_the_cache_takes_nothing_from_itself(checkpoint: Make) -> None:
    folder = checkpoint("llama")
    engine = cached_engine(folder, blocks=2)
    rng = np.random.default_rng(3)
    batch = [item(rng, 30, [20]) for _ in range(6)]
    for _ in range(3):
        np.testing.assert_allclose(
            engine_scores(engine, batch), Reference(folder).scores(batch), atol=TOLERANCE
        )


def test_a_batch_that_fails_leaves_nothing_in_the_cache(checkpoint: Make) -> None:
    folder = checkpoint("llama")
    engine = cached_engine(folder)
    text = words(np.random.default_rng(4), 60)
    batch = [alone(text[:40], text[40:])]
    last = engine.model.model.layers[-1]
    with pytest.raises(ZeroDivisionError), last.register_forward_pre_hook(lambda *_: 1 / 0):
        engine.compute(batch)
    assert stats(engine, batch).cached_tokens == 0
    assert stats(engine, batch).cached_tokens == 48
    np.testing.assert_allclose(
        engine_scores(engine, batch), Reference(folder).scores(batch), atol=TOLERANCE
    )


def test_steps_in_the_cached_part_are_read_all_the_same(checkpoint: Make) -> None:
    """A hidden state that is read is computed; only what comes before it is taken."""
    folder = checkpoint("llama", tokenwise=True, num_labels=2)
    engine = cached_engine(folder, tokenwise=True)
    reference = Reference(folder, tokenwise=True)
    rng = np.random.default_rng(5)
    group = item(rng, 40, [40, 40], readout=[[35, 50, 79], [45, 79]])
    for cached in (0, 32, 32):
        found = engine.compute([group])
        assert found.stats.cached_tokens == cached
        for j, tokens in enumerate(sequences([group])):
            wanted = reference.logits(tokens)[group.readout[j]]
            np.testing.assert_allclose(found.logits[0][j], wanted, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"prefix_cache_mib": 0}),
        ("llama", {"deterministic": True}),
        ("bert", {}),
    ],
)
def test_who_has_no_cache(architecture: str, changes: dict[str, Any], checkpoint: Make) -> None:
    """Nobody who asked for none, and no model in which a beginning sees what follows."""
    model = load(checkpoint(architecture))
    engine = select_engine(model, EngineSettings(**changes), 256).engine
    assert isinstance(engine, PackedEngine)
    batch = [item(np.random.default_rng(6), 40, [20])]
    for _ in range(2):
        found = engine.compute(batch)
        assert (found.stats.computed_tokens, found.stats.cached_tokens) == (60, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["one key off", "one layer for all", "never kept"])
def test_a_fault_of_the_cache_is_refused_at_load(
    fault: str, dtype: torch.dtype, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention.CachedKeys.extend

    def extend(self: Any, key: torch.Tensor, value: torch.Tensor) -> Any:
        if fault == "one key off":
            self._taken = self._taken.roll(1)
        elif fault == "one layer for all":
            self._layer = 0
        else:
            self._kept, self._kept_at = self._kept[:0], self._kept_at[:0]
        return right(self, key, value)

    monkeypatch.setattr(attention.CachedKeys, "extend", extend)
    folder = checkpoint("llama")
    with pytest.raises(CheckpointRefused, match="prefix_cache_mib = 0 does without"):
        select_engine(load(folder, dtype), EngineSettings(), 256)
    without = select_engine(load(folder, dtype), EngineSettings(prefix_cache_mib=0), 256)
    assert isinstance(without.engine, PackedEngine)
