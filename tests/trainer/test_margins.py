"""Margins and centring against TRL's own trainer and closed forms; breakdown by a field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.command import read_rows
from tests.trainer.toy import metrics, run, toy_rows, toy_settings, write_rows
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from guerdon.trainer.common.data.preferences import load_pairs
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.measuring.measures import accuracy, calibration, temperature
from guerdon.trainer.reward.objectives.preference import PreferenceTask
from guerdon.trainer.reward.objectives.read_task import read_task
from guerdon.trainer.reward.scoring import score_pairs


@pytest.fixture
def with_margins(tmp_path: Path) -> tuple[Path, Path]:
    rows = [row | {"gap": (i % 7) / 2} for i, row in enumerate(toy_rows(96, seed=1))]
    kinds = [row | {"kind": "ab"[i % 2], "hard": i < 5} for i, row in enumerate(toy_rows(40, 2))]
    return write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "eval.jsonl", kinds)


@pytest.mark.parametrize("share", ["off", "on"])
def test_the_loss_is_trls_and_the_papers(
    share: str,
    base: Path,
    with_margins: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """-log σ(r₊ - r₋ - m) + λ·(r₊ + r₋)², on identical tensors."""
    monkeypatch.setenv("CI", "1")  # TRL's own trainer reports to its makers elsewhere
    settings = toy_settings(
        base, with_margins, tmp_path / "run", margin_key="gap", center=0.3, share_prompts=share
    )
    task = read_task(settings)
    assert isinstance(task, PreferenceTask)
    model = task.load().eval()
    torch.nn.init.normal_(model.score.weight, std=0.1)  # a loss that is not all log 2
    ours = task.make_trainer(model, tmp_path / "ours", [])
    examples = [ours.train_dataset[i] for i in range(6)]
    batch = ours.data_collator(examples)
    assert batch["margin"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    theirs = RewardTrainer(
        model=model,
        processing_class=task.tokenizer,
        train_dataset=ours.train_dataset,
        args=RewardConfig(
            output_dir=str(tmp_path / "theirs"),
            center_rewards_coefficient=0.3,
            bf16=False,
            report_to="none",
            use_cpu=True,
            max_length=None,
        ),
    )
    plain = DataCollatorForPreference(task.tokenizer.pad_token_id)(examples)
    with torch.no_grad():
        loss = ours.compute_loss(model, dict(batch)).item()
        wanted = theirs.compute_loss(model, dict(plain)).item()
    found = score_pairs(
        model,
        task.inputs.train.pairs[:6],
        pad_id=task.tokenizer.pad_token_id,
        share=False,
        dtype="float32",
    )
    margin = np.arange(6) / 2
    formula = np.logaddexp(0, -(found.delta - margin)) + 0.3 * (found.chosen + found.rejected) ** 2
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert loss == pytest.approx(formula.mean(), rel=1e-5)


def test_margins_push_the_scores_apart(
    base: Path, with_margins: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [row | {"gap": 4.0} for row in read_rows(with_margins[0])]
    wide = write_rows(tmp_path / "wide.jsonl", rows)
    settings = toy_settings(base, (wide, with_margins[1]), tmp_path / "run", margin_key="gap")
    summary, _ = run(settings)
    assert metrics(tmp_path / "run")[0]["loss"] > 3  # at the start Δ ≈ 0: log(1 + e⁴) = 4.02
    assert summary["mean_margin"] > 3
    assert summary["data"]["train"]["margins"]["p50"] == 4.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"gap": "much"', "line 2: gap: is 'much', it must be a number"),
        ('"gap": true', "line 2: gap: is True, it must be a number"),
        ('"gap": NaN', "NaN is not a JSON number"),
        ('"gap": 1e999', "1e999 is too large a number"),
        (f'"gap": 1{"0" * 400}', "it must be a finite number"),
        ('"gap": -0.5', "line 2: gap: is -0.5, it must not be below 0"),
        ('"other": 1', "line 2: gap: is missing"),
    ],
)
def test_bad_margins_are_refused_with_their_line(value: str, message: str, tmp_path: Path) -> None:
    row = '{"prompt": "a", "chosen": "b", "rejected": "c", '
    path = write_rows(tmp_path / "d.jsonl", [f'{row}"gap": 1}}', f"{row}{value}}}"])
    with pytest.raises(DataError) as caught:
        load_pairs(str(path), split="train", margin_key="gap")
    assert message in str(caught.value)
    skipped = load_pairs(str(path), split="train", margin_key="gap", bad_rows="skip")
    assert (skipped.margins, len(skipped.bad)) == ([1.0], 1)


def test_margins_that_are_not_asked_for_are_named(tmp_path: Path) -> None:
    rows = [row | {"margin": 1.0} for row in toy_rows(3, seed=0)]
    found = load_pairs(str(write_rows(tmp_path / "d.jsonl", rows)), split="train")
    assert (found.margins, found.unused_margins) == ([], 3)


def test_a_field_breaks_the_measures_down(
    base: Path, with_margins: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = toy_settings(base, with_margins, tmp_path / "run", by=("kind", "hard"), epochs=1.0)
    task = read_task(settings)
    assert isinstance(task, PreferenceTask)
    model = task.load()
    found = task.measure(model, "float32")
    groups = task.summarise(found)["subgroups"]
    assert list(groups) == ["kind", "hard"]
    assert list(groups["kind"]) == ["a", "b"]
    assert list(groups["hard"]) == ["False", "True"]
    for value, start in (("a", 0), ("b", 1)):
        delta = found.delta[start::2]
        part = groups["kind"][value]
        assert part["n"] == 20
        assert part["accuracy"]["value"] == accuracy(delta).value
        assert part["accuracy"]["low"] == accuracy(delta).low
        assert part["ece"] == calibration(delta).ece
    assert groups["hard"]["True"]["n"] == 5


def test_a_field_that_no_row_has_is_named(
    base: Path, with_margins: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no row has the field 'sort' \(--by\)"):
        read_task(toy_settings(base, with_margins, tmp_path / "run", by=("sort",)))
    with pytest.raises(SettingsError, match="by names 'a' twice"):
        toy_settings(base, with_margins, tmp_path / "run", by=("a", "a"))


def test_the_temperature_is_the_one_that_made_the_choices() -> None:
    """Choices drawn with σ(Δ/3) are calibrated by T = 3."""
    random = np.random.default_rng(0)
    delta = random.normal(0, 6, 40_000)
    right = random.random(len(delta)) < 1 / (1 + np.exp(-delta / 3))
    found = temperature(np.where(right, delta, -delta))
    assert found is not None
    assert found.value == pytest.approx(3, rel=0.03)
    assert found.ece < 0.01 < calibration(np.where(right, delta, -delta)).ece
    assert found.log_loss < calibration(np.where(right, delta, -delta)).log_loss


@pytest.mark.parametrize(
    "delta", [[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0], [0.0] * 4, [1.0]]
)
def test_no_temperature_where_none_is_best(delta: Any) -> None:
    assert temperature(np.array(delta)) is None
    assert math.isfinite(calibration(np.array(delta)).ece)
