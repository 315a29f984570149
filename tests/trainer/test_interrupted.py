"""Runs that end badly: nothing servable is left, and what was done is not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.runs.processes import train
from tests.support.forked import Child
from tests.support.tensorboard import wait_for_later_names
from tests.trainer.toy import metrics, run, toy_settings

from guerdon.trainer.common.errors import DivergedError, OutputError
from guerdon.trainer.common.trl.recipe import fine_tune
from guerdon.trainer.reward import pair_trainer
from guerdon.trainer.reward.folder import RewardFolder
from guerdon.trainer.reward.objectives.read_task import read_task

WEIGHTS = "model.safetensors"


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training end as by Ctrl-C."""
    whole = pair_trainer.PairTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(pair_trainer.PairTrainer, "training_step", training_step)


def test_resume_equals_an_unbroken_run(
    base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"checkpoint_every": 8, "epochs": 2.0, "lora_r": 0}
    unbroken = tmp_path / "unbroken"
    run(toy_settings(base, toy, unbroken, **more))

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 19)  # three steps after a checkpoint, in the second epoch
        with pytest.raises(KeyboardInterrupt):
            run(toy_settings(base, toy, broken, **more))
    assert not (broken / WEIGHTS).exists()
    assert not RewardFolder(
        toy_settings(base, toy, broken, **more), resume=True, overwrite=False
    ).finished
    _, printed = run(toy_settings(base, toy, broken, **more), resume=True)
    assert "resuming at step 16" in printed

    one, other = metrics(unbroken), metrics(broken)
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in other], abs=1e-5)
    weights, resumed = load_file(unbroken / WEIGHTS), load_file(broken / WEIGHTS)
    for name, value in weights.items():
        assert torch.allclose(value, resumed[name], atol=1e-5), name


def test_data_that_changed_is_not_resumed_on(
    base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    for copy, original in zip(data, toy, strict=True):
        copy.write_bytes(original.read_bytes())
    settings = toy_settings(base, data, tmp_path / "run", checkpoint_every=2, limit=32)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    with data[1].open("ab") as file:
        file.write(b"\n")
    with pytest.raises(OutputError, match=r"eval.jsonl has changed since the run in"):
        run(settings, resume=True)
    folder = RewardFolder(settings, resume=False, overwrite=True)
    fine_tune(read_task(settings), folder, Console(quiet=True))
    assert folder.finished


@pytest.mark.parametrize("broken", [3, 11])
def test_a_tracker_gets_every_line(
    broken: int, base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also where a run was broken before its first checkpoint or after it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = toy_settings(
        base,
        toy,
        tmp_path / "run",
        tracker=("tensorboard",),
        eval_every=6,
        checkpoint_every=8,
        limit=96,
    )
    with monkeypatch.context() as patch:
        interrupt_at(patch, broken)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    wait_for_later_names(tmp_path / "run" / "tensorboard")
    run(settings, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for key in ("loss", "eval_accuracy"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        rows = [(row["step"], row[key]) for row in metrics(tmp_path / "run") if key in row]
        assert [step for step, _ in found] == [step for step, _ in rows]
        assert [value for _, value in found] == pytest.approx([value for _, value in rows])


def test_resume_wants_the_same_settings(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    settings = toy_settings(base, toy, tmp_path / "run")
    RewardFolder(settings, resume=False, overwrite=False).begin()
    other = toy_settings(base, toy, tmp_path / "run", lr=1e-4)
    with pytest.raises(OutputError, match=r"was begun with lr = 0\.003, not 0\.0001"):
        RewardFolder(other, resume=True, overwrite=False)


@pytest.mark.parametrize("eval_before", [True, False])
def test_nan_weights_are_never_trained_into_a_model(
    eval_before: bool, base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    ill = tmp_path / "ill"
    ill.mkdir()
    for file in base.iterdir():
        (ill / file.name).write_bytes(file.read_bytes())
    weights = load_file(ill / WEIGHTS)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, ill / WEIGHTS, metadata={"format": "pt"})
    settings = toy_settings(
        ill, toy, tmp_path / "run", eval_before=eval_before, share_prompts="off"
    )
    with pytest.raises(DivergedError):
        run(settings)
    assert not (tmp_path / "run" / WEIGHTS).exists()
    assert not (tmp_path / "run" / "guerdon.json").exists()


def test_a_run_that_diverges_saves_nothing(
    base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = toy_settings(base, toy, tmp_path / "run", lr=1e30)
    with pytest.raises(DivergedError, match=r"step|finite"):
        run(settings)
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_output_in_use_is_refused(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    settings = toy_settings(base, toy, output)
    with pytest.raises(OutputError, match="not empty: --resume goes on with it"):
        RewardFolder(settings, resume=False, overwrite=False)
    with pytest.raises(OutputError, match="not a run of ours"):
        RewardFolder(settings, resume=False, overwrite=True)
    with pytest.raises(OutputError, match="nothing to resume"):
        RewardFolder(settings, resume=True, overwrite=False)
    assert (output / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_run(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    settings = toy_settings(base, toy, tmp_path / "run", epochs=0.2)
    run(settings)
    folder = RewardFolder(settings, resume=False, overwrite=True)
    assert folder.finished  # looking removes nothing
    folder.begin()
    assert not folder.finished
    assert [path.name for path in folder.path.iterdir()] == ["config.toml"]


@pytest.mark.slow
def test_kill_leaves_no_model_and_the_run_can_go_on(
    base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [
        "reward",
        "--base",
        str(base),
        "--train",
        str(toy[0]),
        "--eval",
        str(toy[1]),
        "--output",
        str(output),
        "--lr",
        "3e-3",
        "--dtype",
        "float32",
        "--no-plots",
        "--checkpoint-every",
        "10",
        "--log-every",
        "1",
        "--epochs",
        "2",
    ]
    child = Child(tmp_path / "log", train, command, "after-checkpoint:1")
    child.wait()
    assert child.killed, child.log()
    assert not (output / WEIGHTS).exists()
    assert not (output / "guerdon.json").exists()
    again = Child(tmp_path / "again", train, [*command, "--resume"])
    assert again.wait() == 0, again.log()
    assert "resuming at step 10" in again.log()
    assert (output / WEIGHTS).exists()
    assert json.loads((output / "summary.json").read_text())["steps"] == 24
    steps = [row["step"] for row in metrics(output)]
    assert steps == list(range(1, 25))
    ended = Child(tmp_path / "ended", train, [*command, "--resume"])
    assert ended.wait() == 0
    assert "this run ended already" in ended.log()


def test_a_failure_while_saving_leaves_nothing_servable(
    base: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == WEIGHTS:
            raise OSError("disk full")
        return whole(self, target)

    settings = toy_settings(base, toy, tmp_path / "run", epochs=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(OutputError, match="disk full"):
            run(settings)
    assert (tmp_path / "run" / "guerdon.json").exists()  # all but the weights was moved
    assert not (tmp_path / "run" / WEIGHTS).exists()
    assert not RewardFolder(settings, resume=True, overwrite=False).finished
    run(settings, resume=True)
    assert (tmp_path / "run" / WEIGHTS).exists()
