"""The losses, by closed forms over log-probabilities of plain transformers; and their optimum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.fine_tune.support import answer_logprobs, log_ratio, settings_of
from tests.trainer.toy import write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM

from guerdon.trainer.common.models.language_model import load_lm
from guerdon.trainer.fine_tune.read_task import read_task

Toy = tuple[Path, Path]


def moved(folder: Path) -> Any:
    """The policy some way from its reference."""
    model = load_lm(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def trainer_and_batch(settings: Any, model: Any, tmp_path: Path) -> tuple[Any, Any, Any]:
    task = read_task(settings)
    trainer = task.make_trainer(model, tmp_path / "checkpoints", [])
    batch = next(iter(trainer.get_train_dataloader()))
    return task.inputs, trainer, batch


def rows_of(inputs: Any, batch: Any) -> list[Any]:
    """The rows that a batch of preference pairs is made of, in its order."""
    known = {(*row.prompt, *row.chosen): row for row in inputs.train.rows}
    ids = batch["input_ids"] if "input_ids" in batch else batch["chosen_input_ids"]
    mask = batch["attention_mask"] if "input_ids" in batch else batch["chosen_attention_mask"]
    half = len(ids) // 2 if "input_ids" in batch else len(ids)
    return [known[tuple(ids[i][mask[i].bool()].tolist())] for i in range(half)]


def gradient(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("precompute", [False, True])
def test_dpo_is_its_closed_form(
    loss: str, precompute: bool, policy: Path, toy: Toy, tmp_path: Path
) -> None:
    settings = settings_of("dpo", policy, toy, tmp_path / "run", loss=loss, beta=0.3)
    settings = type(settings)(**{**vars(settings), "precompute_reference": precompute})
    model = load_lm(policy) if precompute else moved(policy)
    inputs, trainer, batch = trainer_and_batch(settings, model, tmp_path)
    if precompute:  # its reference is what the policy is at the start
        model.load_state_dict(moved(policy).state_dict())
    found = trainer.compute_loss(model, batch)
    plain = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    losses = []
    for row in rows_of(inputs, batch):
        ratios = []
        for ids in (row.chosen, row.rejected):
            own = log_ratio(model, plain, row.prompt, ids)
            ratios.append(own.mean() if loss == "ipo" else own.sum())
        delta = ratios[0] - ratios[1]
        losses.append(
            {
                "sigmoid": -F.logsigmoid(0.3 * delta),
                "ipo": (delta - 1 / (2 * 0.3)) ** 2,
                "hinge": torch.relu(1 - 0.3 * delta),
            }[loss]
        )
    right = torch.stack(losses).mean()
    assert found.item() == pytest.approx(right.item(), abs=1e-4)
    found_gradient, right_gradient = gradient(model, found), gradient(model, right)
    assert float((found_gradient - right_gradient).norm() / right_gradient.norm()) < 1e-3


def test_orpo_is_its_closed_form(policy: Path, toy: Toy, tmp_path: Path) -> None:
    """−log-likelihood of the chosen conversation + λ·softplus(−log of the odds ratio)."""
    settings = settings_of("orpo", policy, toy, tmp_path / "run", odds_weight=0.4)
    model = moved(policy)
    inputs, trainer, batch = trainer_and_batch(settings, model, tmp_path)
    found = trainer.compute_loss(model, batch)
    rows = rows_of(inputs, batch)
    tokens, odds = [], []
    for row in rows:
        tokens.append(answer_logprobs(model, row.prompt[:1], [*row.prompt[1:], *row.chosen]))
        means = [
            answer_logprobs(model, row.prompt, ids).mean() for ids in (row.chosen, row.rejected)
        ]
        logits = [mean - torch.log1p(-mean.exp()) for mean in means]
        odds.append(F.softplus(logits[1] - logits[0]))
    right = -torch.cat(tokens).mean() + 0.4 * torch.stack(odds).mean()
    assert found.item() == pytest.approx(right.item(), abs=1e-4)
    found_gradient, right_gradient = gradient(model, found), gradient(model, right)
    assert float((found_gradient - right_gradient).norm() / right_gradient.norm()) < 1e-3


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_sft_learns_answers_only(packing: str, policy: Path, toy: Toy, tmp_path: Path) -> None:
    settings = settings_of("sft", policy, toy, tmp_path / "run", packing=packing)
    model = moved(policy)
    inputs, trainer, batch = trainer_and_batch(settings, model, tmp_path)
    assert trainer.args.padding_free == (packing == "auto")
    found = trainer.compute_loss(model, batch)
    learned = batch["labels"][batch["labels"] != -100].tolist()
    known = {tuple(answer): prompt for prompt, answer in inputs.train.rows}
    rows, at = [], 0
    while at < len(learned):
        answer = next(ids for ids in known if tuple(learned[at : at + len(ids)]) == ids)
        rows.append((known[answer], answer))
        at += len(answer)
    assert len(rows) == 8
    right = -torch.cat([answer_logprobs(model, list(p), list(a)) for p, a in rows]).mean()
    assert found.item() == pytest.approx(right.item(), abs=1e-4)
    found_gradient, right_gradient = gradient(model, found), gradient(model, right)
    assert float((found_gradient - right_gradient).norm() / right_gradient.norm()) < 1e-3


def test_dpo_reaches_the_log_odds_of_bradley_and_terry(policy: Path, tmp_path: Path) -> None:
    """One prompt, two answers of which one wins 7 of 10 times: β·Δ must become log(7/3)."""
    answers = ("rain", "sun")
    rows = [
        {"prompt": "which", "chosen": answers[i >= 7], "rejected": answers[i < 7]}
        for i in range(10)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    settings = settings_of(
        "dpo",
        policy,
        (data, data),
        tmp_path / "run",
        beta=0.5,
        batch_size=10,
        epochs=150.0,
        lr=1e-3,
        checkpoint_every=0,
    )
    model = load_lm(policy)
    inputs, trainer, _ = trainer_and_batch(settings, model, tmp_path)
    trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    row = inputs.train.rows[0]
    with torch.no_grad():
        ratios = [
            float(
                (
                    answer_logprobs(model, row.prompt, ids)
                    - answer_logprobs(plain, row.prompt, ids)
                ).sum()
            )
            for ids in (row.chosen, row.rejected)
        ]
    assert 0.5 * (ratios[0] - ratios[1]) == pytest.approx(math.log(7 / 3), abs=0.01)
