"""The independent reference, and batches to hold the engines against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.support.tiny import SPECIAL_TOKENS
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from guerdon.reward.engine.engine import BatchLogits, Engine, PackedEngine
from guerdon.reward.engine.prefix_cache import BLOCK, PrefixCache
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import EncodedItem

VOCABULARY = 350
FIRST_WORD = len(SPECIAL_TOKENS)

Scores = npt.NDArray[np.float64]


def load(folder: Path, dtype: torch.dtype = torch.float32, *, tokenwise: bool = False) -> Any:
    """A model as plain transformers loads it; eager attention is its definition."""
    auto = AutoModelForTokenClassification if tokenwise else AutoModelForSequenceClassification
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def cached_engine(folder: Path, *, blocks: int | None = None, **kwargs: Any) -> PackedEngine:
    """An engine that passed its probes, with room for so many blocks."""
    engine = select_engine(load(folder, **kwargs), EngineSettings(), 256).engine
    assert isinstance(engine, PackedEngine)
    if blocks is not None:
        engine.cache = PrefixCache(blocks * BLOCK, 1)
        assert engine.cache.blocks == blocks
    return engine


class Reference:
    """Plain `transformers`, one sequence at a time, on a model of its own."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, **kwargs: Any) -> None:
        self.model = load(folder, dtype, **kwargs)
        self.model.config.pad_token_id = None  # so that it reads the true last token

    def logits(self, tokens: npt.NDArray[Any]) -> Scores:
        """[labels], or [T, labels] of a token classifier."""
        with torch.no_grad():
            ids = torch.tensor(np.asarray(tokens, dtype=np.int64)[None])
            return self.model(input_ids=ids).logits[0].double().numpy()

    def scores(self, items: Sequence[EncodedItem]) -> Scores:
        """The first logit of every sequence, in order."""
        return np.array([self.logits(tokens)[0] for tokens in sequences(items)])


def sequences(items: Sequence[EncodedItem]) -> list[npt.NDArray[Any]]:
    """All sequences of a batch, whole."""
    return [np.concatenate([item.prefix, s]) for item in items for s in item.suffixes]


def engine_scores(engine: Engine, items: Sequence[EncodedItem]) -> Scores:
    """The first logit of every sequence, in order."""
    return first_logits(engine.compute(items))


def first_logits(computed: BatchLogits) -> Scores:
    """That of every sequence, in order."""
    return np.array([float(logits[0, 0]) for row in computed.logits for logits in row])


def words(rng: np.random.Generator, length: int) -> npt.NDArray[np.int32]:
    """Random tokens, none of them special."""
    return rng.integers(FIRST_WORD, VOCABULARY, length, dtype=np.int32)


def item(
    rng: np.random.Generator, prefix: int, suffixes: Sequence[int], readout: Any = ()
) -> EncodedItem:
    """A random item with these lengths."""
    return EncodedItem(
        prefix=words(rng, prefix),
        suffixes=tuple(words(rng, n) for n in suffixes),
        truncated=(0,) * len(suffixes),
        readout=tuple(np.array(r, dtype=np.int64) for r in readout),
    )


def mixed_batch(rng: np.random.Generator, size: int, longest: int = 90) -> list[EncodedItem]:
    """Items of mixed lengths: about half of them groups that share a prompt."""
    batch = []
    for _ in range(size):
        prefix = int(rng.integers(0, longest // 2))
        responses = int(rng.choice([1, 1, 2, 3, 5]))
        batch.append(item(rng, prefix, rng.integers(1, longest // 2, responses).tolist()))
    return batch
