"""Process reward models: steps are read where the server reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import tiny_checkpoint
from tests.trainer.rated_toy import interrupt_rows_at, process_settings, solution_rows
from tests.trainer.served import served
from tests.trainer.toy import metrics, run, write_rows
from transformers import AutoModelForTokenClassification, AutoTokenizer

from guerdon.models import Manifest
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.reward.objectives.answer_trainer import collate, read_logits
from guerdon.trainer.reward.objectives.process import ProcessTask, step_cross_entropy
from guerdon.trainer.reward.objectives.read_task import read_task

EVAL = solution_rows(40, seed=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("solutions")
    return (
        write_rows(folder / "train.jsonl", solution_rows(96, seed=1)),
        write_rows(folder / "eval.jsonl", EVAL),
    )


def asked(row: dict[str, Any], marker: str) -> tuple[list[dict[str, str]], str]:
    answer = "".join(step + marker for step in row["completions"])
    return [{"role": "user", "content": row["prompt"]}], answer


def test_what_is_trained_is_served(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = process_settings(
        base,
        data,
        tmp_path / "run",
        step_aggregation="product",
        by=("kind",),
        plots=True,
        epochs=3.0,
    )
    summary, _ = run(settings)
    folder = tmp_path / "run"
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert (manifest.kind, manifest.step_marker, manifest.step_aggregation) == (
        "process",
        "<|step|>",
        "product",
    )
    # The marker was not a token of the base: it is one now, and the model has a row for it.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("<|step|>", add_special_tokens=False)["input_ids"]) == 1
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.id2label == {0: "wrong", 1: "right"}

    found = served(folder, [asked(row, "<|step|>") for row in EVAL])
    steps = [np.array([step.score for step in score.steps]) for score in found]
    assert [len(part) for part in steps] == [len(row["labels"]) for row in EVAL]
    for row, part in zip(EVAL[:5], steps, strict=False):
        turns, answer = asked(row, "<|step|>")
        whole = [*turns, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(whole, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = model(input_ids=ids["input_ids"]).logits[0]
        marks = ids["input_ids"][0] == tokenizer.convert_tokens_to_ids("<|step|>")
        np.testing.assert_allclose(part, (logits[marks, 1] - logits[marks, 0]).numpy(), atol=1e-4)

    right = np.concatenate([row["labels"] for row in EVAL]).astype(float)
    flat = np.concatenate(steps)
    assert summary["step_accuracy"]["value"] == ((flat > 0) == right).mean() > 0.9
    above = flat[right == 1][:, None] - flat[right == 0][None]
    wanted = (above > 0).mean() + (above == 0).mean() / 2
    assert summary["step_auc"]["value"] == pytest.approx(wanted, abs=1e-3)
    assert summary["above_chance"]
    named = [next((i for i, s in enumerate(part) if s < 0), None) for part in steps]
    true = [row["labels"].index(False) if False in row["labels"] else None for row in EVAL]
    wrong = [n == t for n, t in zip(named, true, strict=True) if t is not None]
    assert summary["first_error"]["erroneous"]["value"] == np.mean(wrong)
    assert summary["subgroups"]["kind"]["a"]["n"] == 20
    assert {p.name for p in (folder / "plots").iterdir()} == {
        "training.png",
        "scores.png",
        "reliability.png",
    }
    train = served(folder, [asked(row, "<|step|>") for row in solution_rows(96, seed=1)])
    assert manifest.mean == pytest.approx(np.mean([s.score for s in train]), abs=1e-4)
    assert manifest.std == pytest.approx(np.std([s.score for s in train]), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "bert"])
def test_the_loss_is_that_of_the_models_own_labels(
    architecture: str, data: tuple[Path, Path], tmp_path: Path, chatml: Path
) -> None:
    """TRL's PRMTrainer labelled the marker's token and let the model compute its own loss."""
    base = tiny_checkpoint(tmp_path / "b", architecture, causal_lm=architecture != "bert")
    settings = process_settings(
        base, data, tmp_path / "run", step_marker="<step>", chat_template=str(chatml)
    )
    task = read_task(settings)
    assert isinstance(task, ProcessTask)
    assert not task.inputs.grow  # the tokenizer has this marker
    model = task.load().eval()
    rows = task.inputs.train.rows[:6]
    batch = collate(rows, task.tokenizer.pad_token_id) | task.targets(rows)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[batch["rows"], batch["places"]] = batch["labels"]
    assert (batch["input_ids"][labels != -100] == task.tokenizer("<step>").input_ids[0]).all() or (
        architecture == "bert"
    )
    with torch.no_grad():
        total, metrics_ = step_cross_entropy(read_logits(model, batch), batch)
        wanted = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
    assert (total / len(batch["labels"])).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert 0 <= metrics_["accuracy"] <= 1


def test_resume_and_accumulation_change_nothing(
    base: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {
        "checkpoint_every": 2, "epochs": 3.0, "eval_before": False, "batch_size": 32, "limit": 32,
    }  # fmt: skip
    run(process_settings(base, data, tmp_path / "whole", **more))
    settings = process_settings(base, data, tmp_path / "broken", **more)
    with monkeypatch.context() as patch:
        interrupt_rows_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    run(settings, resume=True)
    weights, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())

    run(
        process_settings(
            base, data, tmp_path / "parts", **more | {"batch_size": 12, "accumulate": 3}
        )
    )
    losses = [
        [row["loss"] for row in metrics(tmp_path / name) if "loss" in row]
        for name in ("whole", "broken", "parts")
    ]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "prompt: is missing"),
        ({"completions": "a"}, "completions: must be a list, with an entry for each step"),
        ({"completions": []}, "completions: is empty"),
        ({"labels": [True]}, "labels: has 1 entries for 2 completions"),
        ({"labels": [True, 0.5]}, "labels[1]: is 0.5, it must be true or false"),
        ({"labels": [True, None]}, "labels[1]: is None, it must be true or false"),
        ({"completions": ["a", " "]}, "completions[1]: must be text that is not empty"),
        ({"completions": ["a", "b<|step|>c"]}, "completions[1]: holds the step marker"),
    ],
)
def test_bad_rows_are_named(
    change: dict[str, Any], message: str, base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    good = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
    bad = write_rows(tmp_path / "bad.jsonl", [good, good | change])
    with pytest.raises(DataError) as caught:
        read_task(process_settings(base, (bad, data[1]), tmp_path / "run"))
    assert f"line 2: {message}" in str(caught.value)


def test_a_marker_that_the_template_writes_is_refused(
    base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    """The newline after an answer would be scored as one more step, by the server too."""
    settings = process_settings(base, data, tmp_path / "run", step_marker="\n")
    with pytest.raises(DataError, match=r"line 1: the answer has \d steps, but \d of its tokens"):
        read_task(settings)
    with pytest.raises(SettingsError, match="step_marker is empty"):
        process_settings(base, data, tmp_path / "run", step_marker="")


def test_markers_in_the_prompt_are_not_steps(
    base: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [row | {"prompt": "one<step>two<step>"} for row in solution_rows(8, seed=3)]
    path = write_rows(tmp_path / "p.jsonl", rows)
    task = read_task(process_settings(base, (path, path), tmp_path / "r", step_marker="<step>"))
    assert isinstance(task, ProcessTask)
    for row, tokens in zip(rows, task.inputs.train.rows, strict=True):
        assert len(tokens.places) == len(row["labels"])
        assert (
            min(tokens.places)
            > max(i for i, t in enumerate(tokens.ids[:40]) if task.tokenizer.decode(t) == "<step>")
            - 40
        )


def test_nothing_to_tell_is_said(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [row | {"labels": [True] * len(row["labels"])} for row in solution_rows(4, seed=3)]
    path = write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="every step is right, there is nothing to tell"):
        read_task(process_settings(base, (path, data[1]), tmp_path / "r"))
