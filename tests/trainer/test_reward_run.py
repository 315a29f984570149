"""A whole run on a tiny model: it learns, and what it saves is what it measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.trainer.served import served
from tests.trainer.toy import metrics, run, toy_settings
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guerdon.models import Manifest, template_hash


@pytest.fixture(scope="module")
def trained(
    base: Path, toy: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("run") / "model"
    summary, _ = run(toy_settings(base, toy, output, plots=True, eval_every=12))
    return output, summary


def plain_scores(folder: Path, rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """Scores by transformers alone, one sequence at a time, at the true last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        ids = tokenizer.apply_chat_template(
            row["prompt"] + row[key], return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.no_grad():
            hidden = model.model(input_ids=ids).last_hidden_state[:, -1]
            scored = model.score(hidden)
            assert torch.allclose(scored, model(input_ids=ids).logits, atol=1e-6)
        found.append(scored.item())
    return np.array(found)


def test_it_learns(trained: tuple[Path, dict[str, Any]]) -> None:
    _, summary = trained
    assert summary["accuracy"] > 0.9
    assert summary["above_chance"]
    assert summary["accuracy_before"] < 0.9
    assert summary["shared_prompts"]
    assert summary["data"]["train"]["pairs"] == 96
    assert summary["data"]["eval"]["pairs"] == 40


def test_the_saved_model_gives_the_measured_scores(
    trained: tuple[Path, dict[str, Any]], toy: tuple[Path, Path]
) -> None:
    folder, summary = trained
    rows = read_rows(toy[1])
    delta = plain_scores(folder, rows, "chosen") - plain_scores(folder, rows, "rejected")
    assert (delta > 0).mean() == summary["accuracy"]
    assert delta.mean() == pytest.approx(summary["mean_margin"], abs=1e-4)


def test_manifest(trained: tuple[Path, dict[str, Any]], toy: tuple[Path, Path], base: Path) -> None:
    folder, _ = trained
    manifest = Manifest.read(folder)
    assert manifest is not None
    rows = read_rows(toy[0])
    scores = np.concatenate([plain_scores(folder, rows, key) for key in ("chosen", "rejected")])
    assert manifest.mean == pytest.approx(scores.mean(), abs=1e-4)
    assert manifest.std == pytest.approx(scores.std(), abs=1e-4)
    assert manifest.kind == "sequence"
    assert manifest.base_model == str(base)
    assert manifest.max_tokens is None  # --max-length is of training: serving goes by the positions
    assert manifest.train_data.endswith(hashlib.sha256(toy[0].read_bytes()).hexdigest())
    template = AutoTokenizer.from_pretrained(folder).chat_template
    assert manifest.template_hash == template_hash(template)
    assert manifest.training["statistics_over_responses"] == len(scores)


def test_what_is_longer_than_max_length_is_served(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    prompt = [{"role": "user", "content": "good answer " * 40}]
    (score,) = served(folder, [(prompt, "It is water.")])
    assert score.token_count > 128


def test_files(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "tokenizer.json", "guerdon.json", "config.toml",
        "metrics.jsonl", "summary.json", "plots",
    }  # fmt: skip
    assert not any(name.startswith(".") or name == "checkpoints" for name in names)
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    # As the umask says: a server that runs as another user reads the weights, too.
    modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert modes == {(folder / "config.toml").stat().st_mode}
    assert {p.name for p in (folder / "plots").iterdir()} == {
        "training.png",
        "reliability.png",
        "scores.png",
        "length.png",
    }
    saved = json.loads((folder / "summary.json").read_text())
    assert saved["accuracy"] == summary["accuracy"]


def test_metrics(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    rows = metrics(folder)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, summary["steps"] + 1))
    assert steps[-1].keys() >= {"loss", "accuracy", "margin", "lr", "grad_norm", "tokens", "epoch"}
    evaluations = [row for row in rows if "eval_accuracy" in row]
    assert [row["step"] for row in evaluations] == [12, 24, 36]
    assert evaluations[-1]["eval_accuracy"] == summary["accuracy"]  # nothing changed after it


@pytest.mark.parametrize("share", ["off", "on"])
def test_bfloat16_learns_too(
    share: str, base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = toy_settings(base, toy, tmp_path / "run", dtype="bfloat16", share_prompts=share)
    summary, _ = run(settings)
    assert summary["accuracy"] > 0.9
    rows = read_rows(toy[1])
    folder = Path(settings.output)
    saved = AutoModelForSequenceClassification.from_pretrained(folder)
    assert saved.dtype == torch.bfloat16
    delta = plain_scores(folder, rows, "chosen") - plain_scores(folder, rows, "rejected")
    assert (delta > 0).mean() == pytest.approx(summary["accuracy"], abs=0.05)
    assert delta.mean() == pytest.approx(summary["mean_margin"], rel=0.02)


def test_what_is_measured_is_what_is_saved(toy: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights that lie on bfloat16's grid, and updates too small for it.

    In training they are rounded away. Saved in float32, they count.
    """
    base = tiny_checkpoint(tmp_path / "b", "llama", causal_lm=True, dtype=torch.bfloat16)
    rows = read_rows(toy[1])
    for save_dtype in ("auto", "float32"):
        settings = toy_settings(
            base, toy, tmp_path / save_dtype, dtype="bfloat16", lr=3e-5, save_dtype=save_dtype
        )
        summary, _ = run(settings)
        folder = Path(settings.output)
        delta = plain_scores(folder, rows, "chosen") - plain_scores(folder, rows, "rejected")
        noise = 0.02 if save_dtype == "auto" else 1e-4
        assert delta.mean() == pytest.approx(summary["mean_margin"], abs=noise)


def test_sharing_prompts_changes_nothing(
    base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    losses = {}
    for share in ("off", "on"):
        # One batch an epoch: lengths, by which pairs are grouped, differ between the two.
        settings = toy_settings(
            base, toy, tmp_path / share, share_prompts=share, batch_size=96, epochs=4.0
        )
        run(settings)
        losses[share] = [row["loss"] for row in metrics(tmp_path / share) if "loss" in row]
    assert losses["on"] == pytest.approx(losses["off"], abs=2e-3)


def test_lora_is_merged(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    summary, _ = run(
        toy_settings(base, toy, output, lora_r=8, lr=1e-2, save_dtype="float32", epochs=4.0)
    )
    assert summary["accuracy"] > 0.9
    rows = read_rows(toy[1])
    delta = plain_scores(output, rows, "chosen") - plain_scores(output, rows, "rejected")
    assert delta.mean() == pytest.approx(summary["mean_margin"], abs=1e-4)
    assert not list(output.glob("adapter*"))
    assert json.loads((output / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]


def test_frozen_layers_stay(base: Path, toy: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(toy_settings(base, toy, output, freeze_layers=1, epochs=1.0))
    before = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    ).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(output).state_dict()
    for name, value in before.items():
        frozen = "embed_tokens" in name or "layers.0." in name
        if frozen or "layers.1." in name:
            assert torch.equal(value, after[name]) == frozen, name


def test_an_encoder_learns(
    toy: tuple[Path, Path], tmp_path: Path, encoder_base: Path, chatml: Path
) -> None:
    settings = toy_settings(
        encoder_base, toy, tmp_path / "run", chat_template=str(chatml), lr=1e-3, epochs=4.0
    )
    summary, _ = run(settings)
    assert not summary["shared_prompts"]
    assert summary["accuracy"] > 0.8


def test_a_model_that_learned_nothing_is_named(
    base: Path, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    import io

    from rich.console import Console

    from guerdon.trainer.reward.folder import RewardFolder
    from guerdon.trainer.reward.report import show_summary

    settings = toy_settings(base, toy, tmp_path / "run", lr=1e-12, epochs=0.1)
    summary, _ = run(settings)
    assert not summary["above_chance"]
    text = io.StringIO()
    folder = RewardFolder(settings, resume=True, overwrite=False)
    show_summary(summary, folder, Console(file=text, width=100))
    assert "can't be told from chance" in text.getvalue()
    assert f"guerdon serve reward --model run={tmp_path / 'run'}" in text.getvalue()
