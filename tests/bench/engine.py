"""Packed against padded batches, and shared prompts against independent ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.bench.common import BenchSettings, encode, load, real_items, seconds, spread, table

from guerdon.reward.types import EncodedItem, RewardModel

BATCH = 32


def batches(model: RewardModel, items: Sequence[EncodedItem], size: int) -> None:
    """Score in batches, in the order of arrival."""
    for start in range(0, len(items), size):
        model.score(items[start : start + size])


def group(prompt: int, responses: int, length: int, *, vocabulary: int = 40_000) -> EncodedItem:
    """Random tokens in the shape of one prompt with several responses."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return rng.integers(100, vocabulary, count, dtype=np.int32)

    return EncodedItem(
        prefix=tokens(prompt),
        suffixes=tuple(tokens(length) for _ in range(responses)),
        truncated=(0,) * responses,
    )


def split(item: EncodedItem) -> list[EncodedItem]:
    """The same sequences as items of their own."""
    return [item.part(i, i + 1) for i in range(item.sequences)]


def run(settings: BenchSettings) -> None:
    """Print both ratios."""
    packed, padded = load(settings, "packed"), load(settings, "padded")
    real = encode(packed, real_items(settings.texts))
    shared = group(1024, 16, 256)
    alone = split(shared)
    batches(packed, real[:BATCH], BATCH)
    batches(padded, real[:BATCH], BATCH)
    over_padded, over_single, over_split = [], [], []
    for _ in range(settings.rounds):
        in_packed = seconds(lambda: batches(packed, real, BATCH))
        over_padded.append(seconds(lambda: batches(padded, real, BATCH)) / in_packed)
        over_single.append(seconds(lambda: batches(packed, real, 1)) / in_packed)
        in_group = seconds(lambda: packed.score([shared]))
        over_split.append(seconds(lambda: batches(packed, alone, 1)) / in_group)
    by_split = spread(over_split) + " ×"
    lengths = [item.tokens for item in real]
    table(
        f"engine, {settings.dtype}: {len(real)} real texts of {min(lengths)} to {max(lengths)} "
        f"tokens in batches of {BATCH}",
        [
            ("packed is faster than padded, sorted by length", spread(over_padded) + " ×"),
            ("packed is faster than one at a time", spread(over_single) + " ×"),
            ("16 × 256 tokens on a prompt of 1,024: each alone against one item", by_split),
        ],
        settings.console,
    )
    packed.close()
    padded.close()
