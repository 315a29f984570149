"""Text pairs: the token types of each sequence reach the model, however it is batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.support import Reference, engine_scores, item, load, mixed_batch, sequences
from tests.support.tiny import give_token_types, tiny_checkpoint
from transformers import AutoTokenizer

from guerdon.models import Manifest
from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import EncodedItem, ScoreItem, Truncation
from guerdon.serving.errors import CheckpointRefused

Make = Callable[..., Path]

CASES = [
    ("bert", PackedEngine),
    ("bert", PaddedEngine),
    ("roberta", PackedEngine),
    ("roberta", PaddedEngine),
    ("deberta-v2", PaddedEngine),
]


def with_types(rng: np.random.Generator, one: EncodedItem) -> EncodedItem:
    """Each sequence parts into two texts at a place of its own, even inside the prefix."""
    types = tuple(
        (np.arange(length) >= rng.integers(0, length + 1)).astype(np.int32)
        for length in one.lengths()
    )
    return replace(one, token_types=types)


def plain(folder: Path, batch: Sequence[EncodedItem]) -> Any:
    """What transformers says of each sequence alone."""
    model = Reference(folder).model
    types = [t for one in batch for t in (one.token_types or [None] * one.sequences)]
    found = []
    for tokens, kinds in zip(sequences(batch), types, strict=True):
        rows = {"input_ids": tokens} | ({} if kinds is None else {"token_type_ids": kinds})
        with torch.no_grad():
            logits = model(**{k: torch.tensor(v[None].astype(np.int64)) for k, v in rows.items()})
        found.append(float(logits.logits[0, 0]))
    return np.array(found)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_every_sequence_has_its_own_types(
    architecture: str, kind: type[Engine], deterministic: bool, checkpoint: Make
) -> None:
    folder = checkpoint(architecture, type_vocab_size=2)
    rng = np.random.default_rng(0)
    bare = mixed_batch(rng, 12)
    batch = [with_types(rng, one) if n % 4 else one for n, one in enumerate(bare)]
    batch.append(with_types(rng, item(rng, 30, [4, 9, 1])).part(1, 3))
    wanted = plain(folder, batch)
    assert np.abs(plain(folder, bare) - wanted[:-2]).max() > 0.1, "types must matter"
    engine = kind(load(folder), deterministic=deterministic)
    np.testing.assert_allclose(engine_scores(engine, batch), wanted, atol=1e-4)
    alone = np.concatenate([engine_scores(engine, [one]) for one in batch])
    np.testing.assert_allclose(alone, wanted, atol=1e-4)


@pytest.mark.parametrize("mode", ["auto", "padded"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
def test_a_pair_scores_as_the_tokenizer_and_the_model_say(
    architecture: str, mode: str, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, architecture, type_vocab_size=2)
    give_token_types(folder)
    model = load_model(folder, name="m", settings=EngineSettings(mode=mode))
    question, answers = "What is the capital of France?", ("Paris.", "It is Rome.", "Paris, no?")
    encoded = model.encode(ScoreItem(question, answers), Truncation.REJECT)
    found = [score.score for row in model.score([encoded]).items for score in row]
    network, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    for answer, score in zip(answers, found, strict=True):
        rows = tokenizer(question, answer, return_tensors="pt")
        assert rows["token_type_ids"].any()
        with torch.no_grad():
            assert float(network(**rows).logits[0, 0]) == pytest.approx(score, abs=1e-4)


def test_an_engine_that_loses_types_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    run = Engine._hidden
    monkeypatch.setattr(
        Engine, "_hidden", lambda self, t, p, types, **k: run(self, t, p, None, **k)
    )
    with pytest.raises(CheckpointRefused, match="probe scores differ"):
        load_model(folder, name="m", settings=EngineSettings())


def test_members_that_tell_other_types_apart_are_no_ensemble(tmp_path: Path) -> None:
    """The first member's encoder would leave out the types that the second one needs."""
    for name, types in (("a", 1), ("b", 2)):
        give_token_types(tiny_checkpoint(tmp_path / name, "bert", type_vocab_size=types))
    Manifest(kind="ensemble", members=("a", "b")).write(tmp_path)
    with pytest.raises(CheckpointRefused, match=r"'b' .* has another vocabulary"):
        load_model(tmp_path, name="e", settings=EngineSettings())
