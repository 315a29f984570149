"""`guerdon train reward` in two processes by DDP over gloo, against one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.runs.ranks import both_end_well, one_dies, one_refuses
from tests.support.old_driver import pretend_old_driver
from tests.trainer.rated_toy import attribute_settings, process_settings, rated_rows, solution_rows
from tests.trainer.toy import metrics, toy_rows, toy_settings, write_rows
from torch.nn.parallel import DistributedDataParallel

from guerdon.cli.main import main
from guerdon.settings import to_toml
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.process_group import SINGLE_PROCESS
from guerdon.trainer.reward.model import call_through_ddp

Files = tuple[Path, Path]

pytestmark = pytest.mark.slow

MEANS = {"seconds", "accuracy", "rmse"}
"""In metrics.jsonl: the time, and what is a mean over batches that are split."""


def arguments(settings: Any, folder: Path, *more: str) -> list[str]:
    """Of `guerdon train`."""
    file = folder / f"{Path(settings.output).name}.toml"
    file.write_text(to_toml(settings))
    return ["reward", "--config", str(file), *more]


def alike(one: Path, other: Path) -> None:
    """The same losses, measures and weights, but for float32's noise."""
    rows = metrics(one), metrics(other)
    assert len(rows[0]) == len(rows[1]) > 5
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        kept = mine.keys() - MEANS
        assert {k: theirs[k] for k in kept} == pytest.approx({k: mine[k] for k in kept}, rel=1e-3)
    weights = [load_file(run / "model.safetensors") for run in (one, other)]
    for name, mine in weights[0].items():
        if not name.endswith("key.bias"):  # the softmax does not see it: its gradient is noise
            assert float((mine - weights[1][name]).abs().max()) < 1e-4, name
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    statistics = [summary["training_set_scores"] for summary in summaries]
    assert statistics[1] == pytest.approx(statistics[0], abs=1e-3)
    manifests = [json.loads((run / "guerdon.json").read_text()) for run in (one, other)]
    assert manifests[0]["training"]["steps"] == manifests[1]["training"]["steps"]


def both(make: Any, folder: Path, *, dies: int = 0) -> None:
    """Run it in one process and in two, of which one may die in a step, and compare."""
    assert main(["train", *arguments(make(folder / "one"), folder)]) == 0
    given = arguments(make(folder / "two"), folder)
    if dies:
        one_dies(folder, given, dies)
        given.append("--resume")
    said = both_end_well(folder, given)
    assert said.count("before training: ") == 1
    assert said.count("resuming at step") == bool(dies)
    alike(folder / "one", folder / "two")


@pytest.mark.parametrize(
    ("encoder", "more"),
    [
        (False, {"share_prompts": "on", "accumulate": 2, "batch_size": 4, "eval_every": 4}),
        (False, {"share_prompts": "off", "lora_r": 4, "lr": 1e-2, "gradient_checkpointing": True}),
        (True, {"margin_key": "gap"}),
    ],
    ids=["shared", "lora", "encoder"],
)
def test_two_processes_learn_the_preferences_that_one_learns(
    encoder: bool,
    more: dict[str, Any],
    base: Path,
    encoder_base: Path,
    chatml: Path,
    tmp_path: Path,
) -> None:
    pairs = [row | {"gap": i % 3} for i, row in enumerate(toy_rows(64, 1))]
    data = (
        write_rows(tmp_path / "train.jsonl", pairs),
        write_rows(tmp_path / "eval.jsonl", toy_rows(21, 2)),
    )
    begin = encoder_base if encoder else base
    values = {"lr": 1e-3, "epochs": 2.0, "checkpoint_every": 6} | more
    if encoder:
        values["chat_template"] = str(chatml)
    dies = 11 if "accumulate" in more else 0  # in the second pass
    both(lambda output: toy_settings(begin, data, output, **values), tmp_path, dies=dies)


@pytest.mark.parametrize("objective", ["attributes", "process"])
def test_two_processes_learn_the_ratings_that_one_learns(
    objective: str, base: Path, tmp_path: Path
) -> None:
    """The loss is a mean over all targets, of which the processes have unequal shares."""
    rows, settings = (
        (rated_rows, attribute_settings)
        if objective == "attributes"
        else (solution_rows, process_settings)
    )
    data: Files = (
        write_rows(tmp_path / "train.jsonl", rows(64, 1)),
        write_rows(tmp_path / "eval.jsonl", rows(21, 2)),
    )
    more = {"lr": 1e-3, "epochs": 2.0, "accumulate": 2, "batch_size": 4, "checkpoint_every": 6}
    dies = 11 if objective == "process" else 0  # in the second pass
    both(lambda output: settings(base, data, output, **more), tmp_path, dies=dies)


def test_parts_of_a_model_on_a_gpu_are_computed_inside_ddp(tmp_path: Path) -> None:
    """There DDP moves the arguments of its forward pass, and fails where it has none."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        model = torch.nn.Linear(2, 1)
        wrapped = DistributedDataParallel(model)
        wrapped.device_ids, wrapped.device_type = [0], "cpu"  # as with a GPU
        rows = torch.ones(3, 2)
        for _ in range(2):
            found = call_through_ddp(wrapped, lambda inner: inner(rows) + inner.bias)
            assert torch.equal(found, model(rows) + model.bias)
        with pytest.raises(ZeroDivisionError):
            call_through_ddp(wrapped, lambda inner: inner(rows) / (1 // 0))
        assert torch.equal(wrapped(rows), model(rows)), "the model has its own forward pass again"
    finally:
        torch.distributed.destroy_process_group()


def test_an_ensemble_whose_process_dies_goes_on(base: Path, toy: Files, tmp_path: Path) -> None:
    """In the second member, from its checkpoint; no member that was whole is trained again."""
    settings = toy_settings(
        base, toy, tmp_path / "run", ensemble=2, epochs=1.0, limit=64, checkpoint_every=2
    )
    given = arguments(settings, tmp_path)
    one_dies(tmp_path, given, 5)
    assert not (tmp_path / "run" / "guerdon.json").exists()
    assert "resuming at step 4" in both_end_well(tmp_path, [*given, "--resume"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (2, 16)
    assert [member["seed"] for member in summary["ensemble"]["members"]] == [0, 1]
    assert "this run ended already" in both_end_well(tmp_path, [*given, "--resume"])


def test_one_process_says_what_is_wrong(base: Path, toy: Files, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "q"}])
    given = arguments(toy_settings(base, toy, tmp_path / "run", lr=1e30), tmp_path)
    for more, sentence in (
        (["--train", str(bad)], "line 1: chosen: is missing"),
        (["--batch-size", "3"], "batch_size is 3, which 2 processes can't share evenly"),
        ([], "not a finite number"),
    ):
        one_refuses(tmp_path, [*given, *more], sentence)
    assert not (tmp_path / "run" / "guerdon.json").exists()


def test_a_driver_that_is_too_old_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_old_driver(monkeypatch, tmp_path)
    with pytest.raises(SettingsError, match="driver on your system is too old"):
        SINGLE_PROCESS.device()
