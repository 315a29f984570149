"""The fine-tuning on its own: which tokens are learned, packing, resuming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.rft.support import rft_settings_of
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.run_folder import last_checkpoint
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.common.trl import completions
from guerdon.trainer.rl.rft import fine_tuning as sft


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class Log:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def __call__(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        self.rows.append({"step": step, "steps": steps, **row})


def tune(folder: Path, samples: list[Sample], output: Path, **more: Any) -> tuple[Any, Log]:
    model, log = load(folder), Log()
    settings = rft_settings_of(**more)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sft.fine_tune(model, tokenizer, samples, settings, output / "checkpoints", log)
    return model, log


@torch.no_grad()
def mean_loss(model: Any, samples: list[Sample]) -> float:
    """-log p of every response token, one sample at a time, by the whole logits."""
    losses = []
    for sample in samples:
        ids = torch.tensor(np.concatenate([sample.prompt_ids_P, sample.response_ids_T])).long()
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for place in range(len(sample.prompt_ids_P), len(ids)):
            losses.append(-logprobs[place - 1, ids[place]].item())
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_all_response_tokens_and_no_others(
    tiny: Path, samples: list[Sample], tmp_path: Path
) -> None:
    _, log = tune(tiny, samples, tmp_path, batch_size=24, epochs=1.0)
    assert [row["step"] for row in log.rows] == [1]
    assert log.rows[0]["loss"] == pytest.approx(mean_loss(load(tiny), samples), abs=1e-4)
    assert log.rows[0]["sft_tokens"] == sum(s.tokens + len(s.prompt_ids_P) for s in samples)


@pytest.mark.parametrize("most", [1, 48, 100])
def test_micro_batches_and_packing_leave_the_gradient_as_it_is(
    most: int, tiny: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self: Any, *args: Any, model: Any, **_: Any) -> None:
        seen.append({name: p.grad.clone() for name, p in model.named_parameters()})

    monkeypatch.setattr(sft._Reports, "on_pre_optimizer_step", on_pre_optimizer_step, raising=False)
    more: dict[str, Any] = {"batch_size": 12, "steps": 1, "max_grad_norm": 1e9}
    tune(tiny, samples, tmp_path / "whole", micro_batch_tokens=10_000, **more)
    if most == 100:  # in padded rows, as for a model that does not keep sequences apart
        monkeypatch.setattr(sft, "keeps_apart", lambda model, rows: False)
    tune(tiny, samples, tmp_path / "parts", micro_batch_tokens=most, **more)
    whole, parts = seen
    for name, gradient in whole.items():
        assert gradient.abs().max() > 1e-3, name
        assert (gradient - parts[name]).abs().max() < 1e-6, name


def test_it_learns_what_it_is_shown(tiny: Path, samples: list[Sample], tmp_path: Path) -> None:
    model, log = tune(tiny, samples, tmp_path, epochs=30.0, lr=3e-3)
    model.eval()
    assert mean_loss(model, samples) < 0.3 < 4 < log.rows[0]["loss"]


def test_bfloat16_keeps_the_weights_in_float32(
    tiny: Path, samples: list[Sample], tmp_path: Path
) -> None:
    model, log = tune(tiny, samples, tmp_path, dtype="bfloat16", epochs=2.0)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    _, exact = tune(tiny, samples, tmp_path / "exact", epochs=2.0)
    losses = [[row["loss"] for row in one.rows] for one in (log, exact)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_length_by_steps_and_by_epochs(tiny: Path, samples: list[Sample], tmp_path: Path) -> None:
    _, log = tune(tiny, samples, tmp_path, steps=5, batch_size=8)
    assert [(row["step"], row["steps"]) for row in log.rows] == [(i, 5) for i in range(1, 6)]
    _, log = tune(tiny, samples, tmp_path / "e", epochs=2.0, batch_size=8)
    assert log.rows[-1]["step"] == 6


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_and_does_what_was_asked(
    schedule: str, tiny: Path, samples: list[Sample], tmp_path: Path
) -> None:
    _, log = tune(
        tiny,
        samples,
        tmp_path,
        lr_schedule=schedule,
        warmup_steps=2,
        lr=1e-3,
        batch_size=4,
        epochs=1.0,
    )
    rates = [row["lr"] for row in log.rows]
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])
    assert (rates[-1] == pytest.approx(1e-3)) == (schedule == "constant")


def test_resuming_equals_an_unbroken_run(
    tiny: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {
        "batch_size": 4, "epochs": 2.0, "checkpoint_every": 4, "lr_schedule": "linear",
    }  # fmt: skip
    unbroken, _ = tune(tiny, samples, tmp_path / "unbroken", **more)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, samples, tmp_path / "broken", **more)
    resumed, log = tune(tiny, samples, tmp_path / "broken", **more)
    assert [row["step"] for row in log.rows] == [9, 10, 11, 12]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again, log = tune(tiny, samples, tmp_path / "broken", **more)  # all was done already
    assert log.rows == []
    assert torch.equal(
        again.state_dict()["lm_head.weight"], unbroken.state_dict()["lm_head.weight"]
    )


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training end as by Ctrl-C."""
    whole = completions.CompletionTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(completions.CompletionTrainer, "training_step", training_step)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("")
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_a_loss_that_is_no_number_ends_it(
    tiny: Path, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="try a smaller --lr"):
        tune(tiny, samples, tmp_path, lr=1e30, epochs=9.0)


def test_a_model_without_positions_is_not_packed(tmp_path: Path, samples: list[Sample]) -> None:
    rows = completions.completion_dataset([s.completion for s in samples])
    for architecture in ("llama", "gpt2", "qwen3"):
        folder = tiny_checkpoint(tmp_path / architecture, architecture, causal_lm=True)
        model = load(folder)
        assert completions.keeps_apart(model, rows)
        whole = model.forward
        model.forward = lambda position_ids=None, whole=whole, **rest: whole(**rest)
        assert not completions.keeps_apart(model, rows)
    assert not completions.keeps_apart(model, rows.select([0]))


@pytest.mark.parametrize(
    ("batch", "longest", "most", "expected"),
    [(16, 10, 160, 16), (16, 10, 159, 8), (16, 10, 1, 1), (12, 10, 70, 6), (7, 10, 60, 1)],
)
def test_micro_batch_divides_the_batch(batch: int, longest: int, most: int, expected: int) -> None:
    assert completions.micro_batch(batch, longest, most) == expected
