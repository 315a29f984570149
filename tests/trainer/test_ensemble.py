"""Ensembles by seed: what is trained is served as one, and resumed by the member."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.support.command import read_rows
from tests.trainer.served import served
from tests.trainer.test_interrupted import interrupt_at
from tests.trainer.toy import toy_settings

from guerdon.models import Manifest
from guerdon.trainer.common.errors import OutputError, SettingsError, TrainingError
from guerdon.trainer.common.trl import mixins
from guerdon.trainer.reward.ensemble import train_ensemble
from guerdon.trainer.reward.folder import EnsembleFolder
from guerdon.trainer.reward.objectives import preference
from guerdon.trainer.reward.objectives.read_task import read_task
from guerdon.trainer.reward.report import show_summary
from guerdon.trainer.reward.settings import RewardSettings


def together(settings: RewardSettings, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    folder = EnsembleFolder(settings, resume=resume, overwrite=False)
    text = io.StringIO()
    console = Console(file=text, width=100)
    summary = train_ensemble(read_task(settings), folder, console)
    show_summary(summary, folder, console)
    return summary, text.getvalue()


def settings_of(base: Path, toy: tuple[Path, Path], output: Path, **more: Any) -> RewardSettings:
    values: dict[str, Any] = {
        "ensemble": 3, "seed": 5, "epochs": 1.0, "aggregation": "mean_minus_std", "std_weight": 0.5,
        "checkpoint_every": 5, "eval_before": False,
    }  # fmt: skip
    return toy_settings(base, toy, output, **(values | more))


def test_an_ensemble_is_resumed_by_the_member_and_served(
    base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(base, toy, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("guerdon.trainer.reward.ensemble.fine_tune", _once())
        with pytest.raises(KeyboardInterrupt):
            together(settings)
    first = tmp_path / "run" / "members" / "0" / "model.safetensors"
    written = first.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)  # two steps after a checkpoint of the second member
        with pytest.raises(KeyboardInterrupt):
            together(settings, resume=True)
    folder = EnsembleFolder(settings, resume=True, overwrite=False)
    assert not folder.finished
    assert not (tmp_path / "run" / "guerdon.json").exists()
    summary, printed = together(settings, resume=True)
    assert "member 0 (seed 5) is trained already" in printed
    assert "resuming at step 5" in printed
    assert first.stat().st_mtime_ns == written
    assert EnsembleFolder(settings, resume=True, overwrite=False).finished

    manifest = Manifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.members == ("members/0", "members/1", "members/2")
    seeds = [
        json.loads((tmp_path / "run" / name / "summary.json").read_text())["seed"]
        for name in manifest.members
    ]
    assert seeds == [5, 6, 7]

    rows = read_rows(toy[1])
    scores = {
        key: served(tmp_path / "run", [(row["prompt"], row[key][0]["content"]) for row in rows])
        for key in ("chosen", "rejected")
    }
    members = {key: np.array([s.members for s in found]) for key, found in scores.items()}
    means = np.array([Manifest.read(tmp_path / "run" / m).mean for m in manifest.members])
    offsets = means - means.mean()
    assert np.abs(offsets).max() > 0.001
    for key, found in scores.items():
        alike = members[key] - offsets
        wanted = alike.mean(1) - 0.5 * alike.std(1)
        np.testing.assert_allclose([s.score for s in found], wanted, atol=1e-9)
    delta = np.array([s.score for s in scores["chosen"]]) - [s.score for s in scores["rejected"]]
    assert (delta > 0).mean() == summary["accuracy"]
    assert delta.mean() == pytest.approx(summary["mean_margin"], abs=1e-4)

    found = summary["ensemble"]
    deltas = (members["chosen"] - members["rejected"]).T
    for i, part in enumerate(found["members"]):
        assert part["accuracy"]["value"] == (deltas[i] > 0).mean()
        own = np.concatenate([members["chosen"][:, i], members["rejected"][:, i]])
        assert part["mean_score"] == pytest.approx(own.mean(), abs=1e-4)
    together_by = {"mean": np.mean, "min": np.min}
    for name, combine in together_by.items():
        better, worse = (combine(members[key] - offsets, 1) for key in ("chosen", "rejected"))
        wanted = (better > worse).mean()
        assert found["aggregations"][name]["accuracy"]["value"] == wanted
    same = [(np.sign(deltas[i]) == np.sign(deltas[j])).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["same_order"] == pytest.approx(np.mean(same))
    everyone = np.concatenate([members["chosen"], members["rejected"]]) - offsets
    assert found["spread"] == pytest.approx(everyone.std(1).mean(), abs=1e-4)


def _once() -> Any:
    """`fine_tune`, of which the second call is interrupted."""
    from guerdon.trainer.common.trl.recipe import fine_tune

    calls: list[int] = []

    def train(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fine_tune(*args)

    return train


def test_members_that_come_out_the_same_are_refused(
    base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(base, toy, tmp_path / "run", ensemble=2, epochs=0.1, plots=False)
    monkeypatch.setattr(preference, "set_seed", lambda seed: _seed0())
    monkeypatch.setattr(mixins.np.random, "default_rng", _fixed)
    with pytest.raises(TrainingError, match="members 0 and 1 came out the same"):
        together(settings)
    assert not (tmp_path / "run" / "guerdon.json").exists()


def _seed0() -> None:
    import transformers

    transformers.set_seed(0)


def _fixed(seed: Any = None, whole: Any = np.random.default_rng) -> Any:
    return whole(0)


def test_settings_of_ensembles(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ensemble is 1, it must be 0"):
        settings_of(base, toy, tmp_path, ensemble=1)
    with pytest.raises(SettingsError, match="aggregation is for an ensemble"):
        settings_of(base, toy, tmp_path, ensemble=0)
    with pytest.raises(SettingsError, match="std_weight is for --aggregation mean_minus_std"):
        settings_of(base, toy, tmp_path, aggregation="min")
    EnsembleFolder(settings_of(base, toy, tmp_path / "r"), resume=False, overwrite=False).begin()
    with pytest.raises(OutputError, match="was begun with ensemble = 3, not 2"):
        EnsembleFolder(
            settings_of(base, toy, tmp_path / "r", ensemble=2), resume=True, overwrite=False
        )
