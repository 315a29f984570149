"""SFT, DPO and ORPO from the command line to a policy that transformers loads."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fine_tune.support import KINDS, answer_logprobs, inputs_of, log_ratio, run, settings_of
from tests.support.command import read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.cli.main import main
from guerdon.settings import field_types, to_toml
from guerdon.trainer.common.errors import DivergedError, OutputError
from guerdon.trainer.common.trl.folder import TunedPolicyFolder
from guerdon.trainer.common.trl.mixins import DivergenceGuard
from guerdon.trainer.fine_tune.cli import PANELS
from guerdon.trainer.fine_tune.read_task import read_task
from guerdon.trainer.fine_tune.task import PolicyTask

Toy = tuple[Path, Path]
WEIGHTS = "final/model.safetensors"
KEYS = {
    "algorithm": "sft, dpo or orpo",
    "policy": "what training began from",
    "steps": "of the optimiser",
    "seed": "of the settings",
    "before": "the policy on the held-out rows before training",
    "after": "the same after training",
    "difference": "after − before, row by row, as `mean`, `se`, `low`, `high` (95 %), `n`",
    "subgroups": "what the trained policy makes of the rows of each value of each `--by`",
    "evaluations": "the lines of evaluations in the middle, as in metrics.jsonl",
    "tokens": "trained on, prompts and repeated passes included",
    "rows": "in the training data",
    "data": "sizes and counts of both parts, with the lines of what is odd",
    "seconds": "of the whole run by phase, earlier parts of a resumed run included",
    "processes": "that trained",
    "warnings": "what to know before using the policy",
    "versions": "of the packages",
}
"""What each key of summary.json is."""


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_recipe_learns_and_leaves_a_whole_folder(
    algorithm: str, policy: Path, toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = [
        "train",
        algorithm,
        "--policy",
        str(policy),
        "--train",
        str(toy[0]),
        "--eval",
        str(toy[1]),
        "--output",
        str(output),
        "--lr",
        "1e-3",
        "--epochs",
        "3",
        "--eval-every",
        "8",
        "--sample-prompts",
        "2",
        "--sample-tokens",
        "4",
    ]
    assert main(arguments) == 0
    printed = capfd.readouterr().err
    assert "24 rows of" in printed
    assert "step 20/24: loss" in printed
    assert "policy: " in printed
    summary = json.loads((output / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    if algorithm == "sft":
        assert after["nll"] < before["nll"] - 0.5
    else:
        assert before["ties"] == 24
        assert after["implicit_accuracy"]["low"] > 0.5
        assert after["margin"] > 0
    rows = read_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 20, 24]
    assert [row["step"] for row in rows if "eval_nll" in row] == [8, 16, 24]
    documented = (Path(__file__).parents[2] / "docs" / "training-on-files.md").read_text()
    assert {key for row in rows for key in row if f"`{key}`" not in documented} == set()
    assert set(summary) == set(KEYS)
    assert [row["step"] for row in summary["evaluations"]] == [8, 16, 24]
    assert summary["tokens"] == rows[-1].get("tokens", rows[-2].get("tokens")) > 1000
    samples = read_rows(output / "samples.jsonl")
    assert all(row["prompt"][-1]["role"] == "user" for row in samples)
    assert all(0 < row["tokens"] <= 4 and row["sample"] == 0 for row in samples)
    assert [row["prompt_index"] for row in samples] == [0, 1, 0, 1]
    assert [(row["kind"], row["step"]) for row in samples] == [
        ("before", 0),
        ("before", 0),
        ("after", 24),
        ("after", 24),
    ]
    pictures = {"training.png"} | ({"rewards.png"} if algorithm != "sft" else set())
    assert {path.name for path in (output / "plots").iterdir()} == pictures
    assert not (output / "checkpoints").exists()

    model = AutoModelForCausalLM.from_pretrained(output / "final").eval()
    chosen = tomllib.loads((output / "config.toml").read_text())["dtype"]
    assert model.dtype == getattr(torch, chosen)
    assert AutoTokenizer.from_pretrained(output / "final").chat_template
    assert main(arguments) == 2  # nothing is overwritten by mistake
    assert "--resume goes on with it" in capfd.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "this run ended already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("sft", {}),
        ("sft", {"packing": "off"}),
        ("sft", {"lora_r": 2}),
        ("dpo", {}),
        ("dpo", {"precompute_reference": True}),
        ("dpo", {"lora_r": 2}),
        ("orpo", {}),
        ("orpo", {"lora_r": 2}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_a_resumed_run_equals_an_unbroken_one(
    algorithm: str,
    more: dict[str, Any],
    policy: Path,
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = more | {"checkpoint_every": 3, "limit": 40, "epochs": 2.0}
    whole = settings_of(algorithm, policy, toy, tmp_path / "whole", **more)
    summary, _ = run(whole)
    broken = settings_of(algorithm, policy, toy, tmp_path / "broken", **more)
    step = DivergenceGuard.training_step
    with monkeypatch.context() as patch:

        def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 7:  # in the second epoch, a step after a checkpoint
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(DivergenceGuard, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    assert not TunedPolicyFolder(broken, resume=True, overwrite=False).finished
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTask, "measure_first", None)  # it was measured, and answered
        resumed, printed = run(broken, resume=True)
    assert "resuming at step 6" in printed
    assert resumed["before"] == summary["before"]
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]
    samples = [tmp_path / name / "samples.jsonl" for name in ("whole", "broken")]
    assert samples[0].read_bytes() == samples[1].read_bytes()
    one, other = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "broken" / WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert summary["after"] == resumed["after"]


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_what_is_measured_is_what_is_saved(
    algorithm: str, policy: Path, toy: Toy, tmp_path: Path
) -> None:
    """Also where weights are rounded; implied rewards equal a direct computation."""
    settings = settings_of(algorithm, policy, toy, tmp_path / "run", save_dtype="float32")
    summary, _ = run(settings)
    with torch.no_grad():
        first, saved = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            for folder in (policy, tmp_path / "run" / "final")
        )
        rows = inputs_of(settings).eval.rows
        if algorithm == "sft":
            found = torch.cat([answer_logprobs(saved, *row) for row in rows])
            assert summary["after"]["nll"] == pytest.approx(-float(found.mean()), abs=1e-4)
            return
        delta = torch.stack(
            [
                sum(
                    sign * log_ratio(saved, first, row.prompt, ids).sum()
                    for sign, ids in ((1, row.chosen), (-1, row.rejected))
                )
                for row in rows
            ]
        )
    assert summary["after"]["margin"] == pytest.approx(0.1 * float(delta.mean()), abs=1e-4)
    right = int((delta > 0).sum()) / len(rows)
    assert summary["after"]["implicit_accuracy"]["value"] == pytest.approx(right)


def test_a_loss_that_is_no_number_ends_it(policy: Path, toy: Toy, tmp_path: Path) -> None:
    settings = settings_of("dpo", policy, toy, tmp_path / "run", lr=1e30, epochs=3.0)
    with pytest.raises(DivergedError, match="try a smaller --lr"):
        run(settings)
    assert not (tmp_path / "run" / "final").exists()


def test_data_that_changed_is_not_resumed_on(
    policy: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_bytes(toy[0].read_bytes())
    settings = settings_of("sft", policy, (train, toy[1]), tmp_path / "run", limit=16)
    with monkeypatch.context() as patch:
        patch.setattr(DivergenceGuard, "training_step", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    with train.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(OutputError, match=r"train.jsonl has changed since the run in"):
        run(settings, resume=True)


def _interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_a_tracker_gets_every_line(policy: Path, toy: Toy, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_of(
        "sft", policy, toy, tmp_path / "run", tracker=("tensorboard",), limit=32, eval_every=2
    )
    run(settings)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    for key in ("loss", "eval_nll"):
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx({row["step"]: row[key] for row in rows if key in row})


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_dry_run_shows_settings_and_memory(
    algorithm: str, policy: Path, toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(algorithm, policy, toy, tmp_path / "run")
    file = tmp_path / "run.toml"
    file.write_text(to_toml(settings))
    assert main(["train", algorithm, "--config", str(file), "--dry-run"]) == 0
    shown, said = capfd.readouterr()
    assert shown.strip() == file.read_text().strip()
    assert "memory of one process" in said
    task = read_task(settings)
    estimate = task.memory_estimate()
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(policy).parameters())
    assert estimate.parts["weights, float32"] == 4 * count
    assert ("reference, float32" in estimate.parts) == (algorithm == "dpo")
    assert task.memory_estimate(2).total < estimate.total
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algorithm", KINDS)
def test_every_setting_has_a_heading(algorithm: str) -> None:
    known = [name for names in PANELS.values() for name in names]
    assert len(known) == len(set(known))
    assert field_types(KINDS[algorithm]).keys() <= set(known)
