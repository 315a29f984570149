"""Reward models of several attributes: what is trained is served, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import tiny_checkpoint
from tests.trainer.rated_toy import attribute_settings, interrupt_rows_at, rated_rows
from tests.trainer.served import served
from tests.trainer.toy import metrics, run, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guerdon.models import Manifest
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.reward.objectives.answer_trainer import IGNORED
from guerdon.trainer.reward.objectives.attributes import AttributeTask, squared_error
from guerdon.trainer.reward.objectives.plots import draw_attributes
from guerdon.trainer.reward.objectives.read_task import read_task
from guerdon.trainer.reward.shared_prefix import parts

EVAL = rated_rows(40, seed=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rated")
    return (
        write_rows(folder / "train.jsonl", rated_rows(160, seed=1)),
        write_rows(folder / "eval.jsonl", EVAL),
    )


@pytest.fixture(scope="module")
def trained(
    base: Path, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("run") / "model"
    settings = attribute_settings(base, data, output, plots=True, by=("kind",), eval_every=40)
    return output, run(settings)[0]


def truth(name: str) -> np.ndarray:
    """The labels of the held-out rows, NaN where there is none."""
    found = [row["attributes"].get(name) for row in EVAL]
    return np.array([np.nan if value is None else value for value in found], dtype=float)


def plain(folder: Path) -> np.ndarray:
    """Predictions by transformers alone, one sequence at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "helpful", 1: "harsh"}
    found = []
    for row in EVAL:
        turns = [*row["prompt"], {"role": "assistant", "content": row["response"]}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found.append(model(input_ids=ids["input_ids"]).logits[0].numpy())
    return np.array(found)


def test_what_is_trained_is_served(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    predicted = plain(folder)
    found = served(folder, [(row["prompt"], row["response"]) for row in EVAL])
    np.testing.assert_allclose([s.attributes for s in found], predicted, atol=1e-4)
    score = predicted @ [1.0, -0.5]
    np.testing.assert_allclose([s.score for s in found], score, atol=1e-4)

    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.kind == "attributes"
    assert manifest.attributes == {"helpful": 1.0, "harsh": -0.5}
    for k, name in enumerate(("helpful", "harsh")):
        known = ~np.isnan(truth(name))
        part = summary["attributes"][name]
        error = predicted[known, k] - truth(name)[known]
        assert part["n"] == known.sum() < 40
        assert part["rmse"]["value"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-4)
        wanted = np.corrcoef(predicted[known, k], truth(name)[known])[0, 1]
        assert part["pearson"]["value"] == pytest.approx(wanted, abs=1e-4)
        assert part["r2"] == pytest.approx(
            1 - (error**2).mean() / truth(name)[known].var(), abs=1e-3
        )
    both = ~np.isnan(truth("helpful") + truth("harsh"))
    assert summary["score"]["n"] == both.sum()
    wanted = np.corrcoef(score[both], (truth("helpful") - 0.5 * truth("harsh"))[both])[0, 1]
    assert summary["score"]["pearson"]["value"] == pytest.approx(wanted, abs=1e-4)
    groups = summary["subgroups"]["kind"]
    error = (predicted - np.stack([truth("helpful"), truth("harsh")], 1))[::2]
    assert groups["even"]["n"] == 20
    assert groups["even"]["harsh_rmse"]["value"] == pytest.approx(
        np.sqrt(np.nanmean(error[:, 1] ** 2)), abs=1e-4
    )


def test_it_learns(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    assert summary["above_chance"]
    assert summary["attributes"]["helpful"]["r2"] > 0.5
    assert summary["attributes"]["harsh"]["r2"] > 0.5
    assert summary["rmse"] < 0.6 * summary["before"]["eval_rmse"]
    assert {p.name for p in (folder / "plots").iterdir()} == {
        "training.png",
        "predicted.png",
        "calibration.png",
    }
    rows = metrics(folder)
    assert rows[0].keys() >= {"loss", "lr", "grad_norm", "tokens", "epoch"}
    assert [row["step"] for row in rows if "eval_rmse" in row] == [40, 80]
    assert not list(folder.glob("**/*.bin"))
    statistics = json.loads((folder / "guerdon.json").read_text())
    assert statistics["std"] > 0
    assert statistics["training"]["rows"] == 160


def test_the_loss_counts_known_targets_only() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    batch = {
        "targets": torch.tensor([[0.5, 9.0], [1.0, 1.0]]),
        "labels": torch.tensor([[0, IGNORED], [0, 0]]),
    }
    total, _ = squared_error(logits, batch)
    assert total.item() == 0.25 + 4 + 4
    total.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, 0.0], [4.0, -4.0]]


def test_accumulation_changes_nothing(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    """Batches have different numbers of labels; the mean is over all of a step's."""
    losses, weights = [], []
    for i, (batch, accumulate) in enumerate(((32, 1), (12, 3))):
        settings = attribute_settings(
            base,
            data,
            tmp_path / str(i),
            batch_size=batch,
            accumulate=accumulate,
            epochs=2.0,
            limit=32,
            eval_before=False,
        )
        run(settings)
        losses.append([row["loss"] for row in metrics(tmp_path / str(i)) if "loss" in row])
        weights.append(load_file(tmp_path / str(i) / "model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Adam's first step moves every weight by ±lr; later ones show what the gradients were.
    head = [part["score.weight"] for part in weights]
    assert torch.allclose(head[0], head[1], atol=1e-3)


def test_resume_equals_an_unbroken_run(
    base: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"checkpoint_every": 5, "epochs": 1.0, "eval_before": False, "limit": 64}
    run(attribute_settings(base, data, tmp_path / "unbroken", **more))
    settings = attribute_settings(base, data, tmp_path / "broken", **more)
    with monkeypatch.context() as patch:
        interrupt_rows_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert "resuming at step 5" in run(settings, resume=True)[1]
    one, other = (metrics(tmp_path / name) for name in ("unbroken", "broken"))
    for key in ("step", "loss", "tokens"):
        assert [row[key] for row in one] == [row[key] for row in other]
    weights, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "broken")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_a_new_head_begins_at_the_means(
    base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    task = read_task(attribute_settings(base, data, tmp_path / "run"))
    assert isinstance(task, AttributeTask)
    model = task.load()
    predicted = task.measure(model, "float32")
    targets = np.array([row.targets for row in task.inputs.train.rows], dtype=float)
    means = np.nanmean(targets, axis=0)
    np.testing.assert_allclose(predicted.mean(0), means, atol=0.5)

    trained = tiny_checkpoint(tmp_path / "b", "llama", num_labels=2)
    before = load_file(trained / "model.safetensors")["score.weight"]
    task = read_task(attribute_settings(trained, data, tmp_path / "other"))
    found = parts(task.load())
    assert found is not None
    assert torch.equal(before, found[1].weight)  # type: ignore[arg-type]


def test_lora_and_bfloat16_learn_too(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = attribute_settings(
        base, data, tmp_path / "run", lora_r=8, dtype="bfloat16", epochs=1.0, limit=80
    )
    summary, _ = run(settings)
    assert summary["rmse"] < summary["before"]["eval_rmse"]
    predicted = plain(tmp_path / "run")
    error = predicted - np.stack([truth("helpful"), truth("harsh")], 1)
    assert summary["rmse"] == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"helpful": "high"}}, "attributes.helpful: is 'high', it must be a number"),
        ({"attributes": {"helpful": True}}, "attributes.helpful: is True, it must be a number"),
        ({"attributes": 3}, "attributes: must be an object of numbers by name"),
        ({"attributes": {"odd": 1}}, "attributes: has none of helpful, harsh"),
        ({"response": " "}, "response: ends with an empty answer"),
        ({"response": None}, "response: must be a non-empty list of messages"),
    ],
)
def test_bad_rows_are_named(
    change: dict[str, Any], message: str, base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = rated_rows(3, seed=0)
    bad = write_rows(tmp_path / "bad.jsonl", [rows[0], rows[1] | change, rows[2]])
    with pytest.raises(DataError) as caught:
        read_task(attribute_settings(base, (bad, data[1]), tmp_path / "run"))
    assert f"line 2: {message}" in str(caught.value)


def test_ratings_may_stand_beside_the_text(
    base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    """As in HelpSteer2."""
    rows = [
        {"prompt": "a", "response": "b", "helpful": 3, "harsh": 1},
        {"prompt": "a", "response": "c", "helpful": 4, "harsh": None},
    ]
    flat = write_rows(tmp_path / "flat.jsonl", rows)
    task = read_task(attribute_settings(base, (flat, data[1]), tmp_path / "run"))
    assert isinstance(task, AttributeTask)
    assert [row.targets for row in task.inputs.train.rows] == [(3.0, 1.0), (4.0, None)]


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ((), "attribute is missing: give --attribute NAME=WEIGHT"),
        (("helpful",), "attribute is 'helpful', it must be NAME=WEIGHT"),
        (("helpful=much",), "attribute is 'helpful=much', and 'much' is not a finite number"),
        (("helpful=inf",), "'inf' is not a finite number"),
        (("helpful=1", "helpful=2"), "attribute names 'helpful' twice"),
        (("helpful=0",), "every weight is 0"),
    ],
)
def test_bad_weights_are_named(attribute: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        attribute_settings(tmp_path, (tmp_path, tmp_path), tmp_path, attribute=attribute)
    assert message in str(caught.value)


def test_an_attribute_that_no_row_has_is_named(
    base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = attribute_settings(base, data, tmp_path / "r", attribute=("odd=1", "clear=1"))
    with pytest.raises(
        DataError, match="no row has the attribute 'clear'; its rows have harsh, helpful"
    ):
        read_task(settings)


def test_names_with_dollars_are_drawn(tmp_path: Path) -> None:
    """Between two of them matplotlib would set a formula, and `_{` is none."""
    values = np.array([0.0, 1.0, 2.0])
    draw_attributes(tmp_path, [{"step": 1, "loss": 1.0}], {"$_{$": (values, values)})
    assert {p.name for p in tmp_path.iterdir()} == {
        "training.png",
        "predicted.png",
        "calibration.png",
    }
