"""Two processes by DDP over gloo, against one: the same losses and weights, and one voice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.fine_tune.support import settings_of
from tests.runs.ranks import both_end_well, one_dies, one_refuses
from tests.support.command import read_rows
from tests.trainer.toy import write_rows

from guerdon.cli.main import main
from guerdon.settings import to_toml
from guerdon.trainer.fine_tune.settings import PolicySettings

Toy = tuple[Path, Path]

pytestmark = pytest.mark.slow


def arguments(settings: PolicySettings, folder: Path, *more: str) -> list[str]:
    """Of `guerdon train`."""
    file = folder / f"{Path(settings.output).name}.toml"
    file.write_text(to_toml(settings))
    return [settings.algorithm, "--config", str(file), *more]


def alike(one: Path, other: Path) -> None:
    """The same losses, measures and weights, but for float32's noise."""
    first, second = (read_rows(run / "metrics.jsonl") for run in (one, other))
    for mine, theirs in zip(first, second, strict=True):
        del mine["seconds"], theirs["seconds"]
        if abs(mine.get("margin", 1.0)) < 1e-3:  # the first step's rate is 0: the sign of noise
            del mine["accuracy"], theirs["accuracy"]
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-4)
    weights = [load_file(run / "final" / "model.safetensors") for run in (one, other)]
    assert all(float((weights[0][k] - weights[1][k]).abs().max()) < 2e-6 for k in weights[0])
    summaries: list[Any] = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    for key in ("tokens", "steps", "data"):
        assert summaries[0][key] == summaries[1][key]
    margins = [
        summary["difference"].get("margin", summary["difference"].get("answer_nll"))
        for summary in summaries
    ]
    assert margins[1] == pytest.approx(margins[0], abs=1e-4)
    samples = [read_rows(run / "samples.jsonl") for run in (one, other)]
    assert samples[0] == samples[1]


def test_two_processes_learn_what_one_learns(policy: Path, toy: Toy, tmp_path: Path) -> None:
    more = {"batch_size": 4, "accumulate": 2, "lora_r": 2, "eval_every": 3, "limit": 32}
    one, two = (
        settings_of("orpo", policy, toy, tmp_path / name, **more) for name in ("one", "two")
    )
    assert main(["train", *arguments(one, tmp_path)]) == 0
    said = both_end_well(tmp_path, arguments(two, tmp_path))
    assert said.count("step 4/4: loss") == 1
    alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("algorithm", "more"), [("sft", {"packing": "off"}), ("dpo", {"precompute_reference": True})]
)
def test_a_process_that_dies_ends_the_run_and_it_resumes(
    algorithm: str, more: dict[str, Any], policy: Path, toy: Toy, tmp_path: Path
) -> None:
    more = more | {"checkpoint_every": 3, "limit": 40, "epochs": 2.0, "eval_every": 4}
    one, two = (
        settings_of(algorithm, policy, toy, tmp_path / name, **more) for name in ("one", "two")
    )
    assert main(["train", *arguments(one, tmp_path)]) == 0
    given = arguments(two, tmp_path)
    one_dies(tmp_path, given, 7)
    assert "resuming at step 6" in both_end_well(tmp_path, [*given, "--resume"])
    alike(tmp_path / "one", tmp_path / "two")


def test_one_process_says_what_is_wrong(policy: Path, toy: Toy, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "q"}])
    settings = settings_of("dpo", policy, toy, tmp_path / "run", lr=1e30, epochs=3.0)
    given = arguments(settings, tmp_path)
    for more, sentence in (
        (["--train", str(bad)], "line 1: chosen: is missing"),
        (["--batch-size", "3"], "batch_size is 3, which 2 processes can't share evenly"),
        ([], "the loss is not a finite number at step"),
    ):
        one_refuses(tmp_path, [*given, *more], sentence)
    assert not (tmp_path / "run" / "final").exists()
