"""What each kind makes of its logits, against numpy and plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.support import Reference, item, load, mixed_batch, sequences
from tests.support.conversations import conversation
from tests.support.tiny import DECODERS, STEP, tiny_checkpoint

from guerdon.models import Manifest
from guerdon.reward.engine.engine import PackedEngine, PaddedEngine
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.kinds.ensemble import EnsembleReward
from guerdon.reward.kinds.network import AttributesReward, ProcessReward, SequenceReward
from guerdon.reward.types import (
    Attribute,
    BatchScores,
    ComputeMode,
    EncodedItem,
    ModelInfo,
    ModelKind,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused

Make = Callable[..., Path]


class NoEncoder:
    """These tests hand over tokens."""

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        raise NotImplementedError


def info(kind: ModelKind, **settings: Any) -> ModelInfo:
    return ModelInfo(
        name="m",
        revision="r",
        kind=kind,
        architecture="a",
        max_tokens=256,
        dtype="float32",
        device="cpu",
        compute_mode=ComputeMode.PACKED,
        **settings,
    )


def flat(scores: BatchScores) -> list[Any]:
    return [score for row in scores.items for score in row]


def test_sequence_scores_are_raw_and_counted(checkpoint: Make) -> None:
    folder = checkpoint("llama")
    model = SequenceReward(info(ModelKind.SEQUENCE), NoEncoder(), PackedEngine(load(folder)))
    rng = np.random.default_rng(0)
    batch = [item(rng, 20, [5, 6, 7]), item(rng, 30, [1])]
    batch[0] = EncodedItem(prefix=batch[0].prefix, suffixes=batch[0].suffixes, truncated=(4, 5, 6))
    found = model.score(batch)
    wanted = Reference(folder).scores(batch)
    np.testing.assert_allclose([s.score for s in flat(found)], wanted, atol=1e-4)
    assert [s.token_count for s in flat(found)] == [25, 26, 27, 31]
    assert [s.reused_tokens for s in flat(found)] == [0, 20, 20, 0]
    assert [s.truncated_tokens for s in flat(found)] == [4, 5, 6, 0]
    assert found.stats.reused_tokens == 40
    model.close()


def test_scores_far_beyond_the_sigmoids_range_stay_distinct(checkpoint: Make) -> None:
    """23.0 and 25.0 both have the float32 sigmoid 1.0; so do -110 and -120 have 0.0."""
    folder = checkpoint("llama")
    network = load(folder)
    with torch.no_grad():
        network.score.weight.mul_(40)
    engine = PackedEngine(network)
    batch = mixed_batch(np.random.default_rng(1), 12)
    scores = flat(SequenceReward(info(ModelKind.SEQUENCE), NoEncoder(), engine).score(batch))
    values = [s.score for s in scores]
    assert max(map(abs, values)) > 20
    assert len(set(values)) == len(values)


def test_attributes_are_weighted_and_reported(checkpoint: Make) -> None:
    folder = checkpoint("qwen2", num_labels=3)
    weights = {"helpful": 0.7, "correct": 1.5, "verbose": -0.25}
    attributes = tuple(Attribute(name, weight) for name, weight in weights.items())
    model = AttributesReward(
        info(ModelKind.ATTRIBUTES, attributes=attributes), NoEncoder(), PackedEngine(load(folder))
    )
    batch = mixed_batch(np.random.default_rng(2), 9)
    reference = Reference(folder)
    values = np.array([reference.logits(tokens) for tokens in sequences(batch)])
    found = flat(model.score(batch))
    np.testing.assert_allclose([s.attributes for s in found], values, atol=1e-4)
    total = values @ np.array(list(weights.values()))
    np.testing.assert_allclose([s.score for s in found], total, atol=3e-4)


AGGREGATES: dict[str, Callable[[Any], float]] = {
    "min": np.min,
    "mean": np.mean,
    "last": lambda s: s[-1],
    "product": lambda s: np.log(np.prod(1 / (1 + np.exp(-s)))),
}


@pytest.mark.parametrize("aggregation", AGGREGATES)
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "modernbert", "deberta-v2"])
def test_steps_are_read_at_their_markers(
    architecture: str, labels: int, aggregation: str, checkpoint: Make
) -> None:
    folder = checkpoint(architecture, num_labels=labels, token_classification=True)
    network = load(folder, tokenwise=True)
    engine = select_engine(network, EngineSettings(), 256).engine
    model = ProcessReward(
        info(ModelKind.PROCESS, step_aggregation=aggregation), NoEncoder(), engine
    )
    rng = np.random.default_rng(3)
    batch = [
        item(rng, 12, [9, 20, 4], [[14, 20], [3, 12, 31], [15]]),  # one lies in the prompt
        item(rng, 0, [33], [[0, 5, 32]]),
    ]
    reference = Reference(folder, tokenwise=True)
    places = [steps for one in batch for steps in one.readout]
    for found, tokens, steps in zip(
        flat(model.score(batch)), sequences(batch), places, strict=True
    ):
        logits = reference.logits(tokens)[steps]
        raw = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
        np.testing.assert_allclose([s.score for s in found.steps], raw, atol=2e-4)
        assert [s.token_index for s in found.steps] == steps.tolist()
        np.testing.assert_allclose(found.score, AGGREGATES[aggregation](raw), atol=4e-4)


def test_a_response_without_steps_has_no_score(checkpoint: Make) -> None:
    network = load(checkpoint("qwen2", token_classification=True), tokenwise=True)
    model = ProcessReward(
        info(ModelKind.PROCESS, step_aggregation="mean"), NoEncoder(), PackedEngine(network)
    )
    rng = np.random.default_rng(4)
    empty, full = item(rng, 0, [5], [[]]), item(rng, 0, [5], [[4]])
    assert np.isnan(model.score([empty]).items[0][0].score)
    found = flat(model.score([empty, full]))
    assert np.isnan(found[0].score)
    assert np.isfinite(found[1].score)


ENSEMBLES: dict[str, Callable[[Any], Any]] = {
    "mean": lambda m: m.mean(0),
    "min": lambda m: m.min(0),
    "mean_minus_std": lambda m: m.mean(0) - 0.5 * np.sqrt(((m - m.mean(0)) ** 2).mean(0)),
}


@pytest.mark.parametrize("aggregation", ENSEMBLES)
def test_an_ensemble_combines_its_members(aggregation: str, checkpoint: Make) -> None:
    """Each member has a zero of its own: its training mean is what it is measured from."""
    folders = [checkpoint("llama", seed=seed) for seed in range(3)]
    means = np.array([4.0, -4.0, 1.5])
    members = [
        SequenceReward(info(ModelKind.SEQUENCE, mean=mean), NoEncoder(), PackedEngine(load(folder)))
        for folder, mean in zip(folders, means.tolist(), strict=True)
    ]
    model = EnsembleReward(
        info(ModelKind.ENSEMBLE, members=("a", "b", "c"), aggregation=aggregation),
        members,
        std_weight=0.5,
    )
    batch = mixed_batch(np.random.default_rng(5), 8)
    wanted = np.array([Reference(folder).scores(batch) for folder in folders])
    scores = model.score(batch)
    found = flat(scores)
    np.testing.assert_allclose(np.array([s.members for s in found]).T, wanted, atol=1e-4)
    wanted = wanted - (means - means.mean())[:, None]
    np.testing.assert_allclose([s.spread for s in found], wanted.std(0, ddof=0), atol=1e-4)
    np.testing.assert_allclose([s.score for s in found], ENSEMBLES[aggregation](wanted), atol=2e-4)
    assert scores.stats.sequences == len(found)
    assert scores.stats.computed_tokens == 3 * sum(
        one.tokens for one in batch if one.sequences > 1
    ) + 3 * sum(one.lengths()[0] for one in batch if one.sequences == 1)
    model.close()


def test_a_nan_stays_a_nan(checkpoint: Make) -> None:
    """Whoever dispatches the batch must see it: no kind may hide it."""
    network = load(checkpoint("llama"))
    engine = PackedEngine(network)
    with torch.no_grad():
        network.score.weight.fill_(float("nan"))
    model = SequenceReward(info(ModelKind.SEQUENCE), NoEncoder(), engine)
    batch = mixed_batch(np.random.default_rng(6), 2)
    assert all(np.isnan(s.score) for s in flat(model.score(batch)))
    ensemble = EnsembleReward(info(ModelKind.ENSEMBLE, aggregation="min"), [model])
    assert all(np.isnan(s.score) for s in flat(ensemble.score(batch)))


def test_infinite_attributes_are_passed_on(checkpoint: Make) -> None:
    """An exception would fail the whole batch, and a weight of zero must not hide them."""
    network = load(checkpoint("qwen2", num_labels=3))
    engine = PackedEngine(network)
    attributes = tuple(
        Attribute(name, weight) for name, weight in (("a", 1.0), ("b", 1.0), ("c", 0.0))
    )
    model = AttributesReward(info(ModelKind.ATTRIBUTES, attributes=attributes), NoEncoder(), engine)
    batch = mixed_batch(np.random.default_rng(7), 3)
    for values in ([1e39, -1e39, 0.0], [0.0, 0.0, 1e39]):
        head = torch.nn.Linear(64, 3)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.tensor(values))
        engine.head.layers[0] = head
        assert all(np.isnan(s.score) for s in flat(model.score(batch)))


ITEM = ScoreItem(
    prompt=conversation(("user", "What is the capital of France?")),
    responses=("Paris.", "Paris is the capital of France, I think.", "Rome"),
)


@pytest.mark.parametrize("architecture", DECODERS)
def test_load_model_from_a_folder(architecture: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    Manifest(mean=0.5, std=2.0, base_model="tiny").write(folder)
    model = load_model(folder, name="tiny", settings=EngineSettings())
    assert model.info.name == "tiny"
    assert model.info.kind is ModelKind.SEQUENCE
    assert model.info.compute_mode is ComputeMode.PACKED
    assert (model.info.mean, model.info.std, model.info.base_model) == (0.5, 2.0, "tiny")
    assert (model.info.dtype, model.info.device) == ("float32", "cpu")
    encoded = model.encode(ITEM, Truncation.REJECT)
    reference = Reference(folder)
    assert model.info.parameters == sum(p.numel() for p in reference.model.parameters())
    wanted = reference.scores([encoded])
    found = flat(model.score([encoded]))
    np.testing.assert_allclose([s.score for s in found], wanted, atol=1e-4)
    assert sum(s.reused_tokens for s in found) == 2 * len(encoded.prefix) > 0
    model.close()


@pytest.mark.parametrize("labels", [1, 2])
def test_load_a_process_model(tmp_path: Path, labels: int) -> None:
    """One output is the raw score; of two, the score is the log-odds of the second."""
    folder = tiny_checkpoint(tmp_path / "m", "qwen2", token_classification=True, num_labels=labels)
    Manifest(kind="process", step_marker=STEP, step_aggregation="product").write(folder)
    model = load_model(folder, name="steps", settings=EngineSettings())
    assert (model.info.step_marker, model.info.step_aggregation) == (STEP, "product")
    item_ = ScoreItem(
        prompt="1 + 1 + 1 = ?",
        responses=(f"1 + 1 = 2{STEP}2 + 1 = 3{STEP}", f"It is 3.{STEP}"),
    )
    encoded = model.encode(item_, Truncation.REJECT)
    found = flat(model.score([encoded]))
    assert [len(s.steps) for s in found] == [2, 1]
    reference = Reference(folder, tokenwise=True)
    for score, tokens in zip(found, sequences([encoded]), strict=True):
        logits = np.array([reference.logits(tokens)[s.token_index] for s in score.steps])
        steps = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
        np.testing.assert_allclose([s.score for s in score.steps], steps, atol=1e-4)
        np.testing.assert_allclose(score.score, AGGREGATES["product"](steps), atol=2e-4)


def test_load_attributes(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama", num_labels=2)
    Manifest(kind="attributes", attributes={"helpful": 1.0, "long": -0.1}).write(folder)
    model = load_model(folder, name="a", settings=EngineSettings())
    assert model.info.attributes == (Attribute("helpful", 1.0), Attribute("long", -0.1))
    (score, *_) = flat(model.score([model.encode(ITEM, Truncation.REJECT)]))
    assert score.score == pytest.approx(score.attributes[0] - 0.1 * score.attributes[1])


def test_load_an_ensemble(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for seed in range(2):
        Manifest(mean=8.0 * seed, std=1.0).write(
            tiny_checkpoint(folder / f"member-{seed}", "llama", seed=seed)
        )
    members = ("member-0", "member-1")
    Manifest(kind="ensemble", members=members, aggregation="mean_minus_std", std_weight=2.0).write(
        folder
    )
    model = load_model(folder, name="e", settings=EngineSettings())
    assert model.info.kind is ModelKind.ENSEMBLE
    assert model.info.members == members
    encoded = model.encode(ITEM, Truncation.REJECT)
    wanted = np.array([Reference(folder / m).scores([encoded]) for m in members])
    wanted += np.array([[4.0], [-4.0]])  # their means, 0 and 8, are 4 from the average
    found = flat(model.score([encoded]))
    np.testing.assert_allclose(
        [s.score for s in found], wanted.mean(0) - 2 * wanted.std(0), atol=5e-4
    )


@pytest.mark.parametrize(
    ("names", "label"), [((), "LABEL_0"), (("GOOD",), "GOOD"), (("GOOD", "BAD"), "LABEL_0")]
)
def test_an_output_has_the_checkpoints_name_for_it(
    tmp_path: Path, names: tuple[str, ...], label: str
) -> None:
    """Several outputs make one score, which none of their names names."""
    labels = {"id2label": dict(enumerate(names))} if names else {}
    folder = tiny_checkpoint(tmp_path / "m", "llama", num_labels=len(names) or 1, **labels)
    if len(names) > 1:
        Manifest(kind="attributes", attributes=dict.fromkeys(names, 1.0)).write(folder)
    model = load_model(folder, name="m", settings=EngineSettings())
    assert model.info.label == label
    model.close()


def test_load_an_encoder_in_padded_mode(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "deberta-v2")
    model = load_model(folder, name="d", settings=EngineSettings())
    assert model.info.compute_mode is ComputeMode.PADDED
    assert "attention" in model.info.compute_mode_reason
    item_ = ScoreItem(prompt="Is Rome in Italy?", responses=("Yes.", "No, it is in France."))
    encoded = model.encode(item_, Truncation.REJECT)
    found = [s.score for s in flat(model.score([encoded]))]
    np.testing.assert_allclose(found, Reference(folder).scores([encoded]), atol=1e-4)


def test_a_broken_checkpoint_is_refused_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    run = PaddedEngine._hidden
    monkeypatch.setattr(
        PaddedEngine, "_hidden", lambda self, t, p, *a, **k: run(self, t, np.maximum(p, 1), *a, **k)
    )
    with pytest.raises(CheckpointRefused, match=f"{folder}: its probe scores differ"):
        load_model(folder, name="m", settings=EngineSettings(mode="padded"))
