"""Known answers 5 and 7: DPO and ORPO by their papers, by closed form, and as TRL has them.

The losses are TRL's (nothing of ours computes them), so the formulas stand here.

    DPO   Rafailov et al. 2023, arXiv:2305.18290, eq. 7
    ORPO  Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_checkpoint
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

LAMBDA = 0.1
BETA = 0.1
PAIRS = [
    {"prompt": "Hot water.", "chosen": " An egg for you.", "rejected": " No."},
    {"prompt": "The capital", "chosen": " of Italy", "rejected": " is a very good boy I think."},
    {"prompt": "How?", "chosen": " Eight minutes.", "rejected": " Paris and Rome."},
]


def log_odds(mean_logprob: Tensor) -> Tensor:
    """log p/(1−p), with log(1−p) as is exact on either side of p = ½."""
    p = mean_logprob
    small = torch.log1p(-p.clamp(max=-0.6931).exp())
    large = torch.log(-torch.expm1(p.clamp(min=-0.6931)))
    return p - torch.where(p < -0.6931, small, large)


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """−log σ(β·(difference of log(π/π_ref)))."""
    return -logsigmoid(beta * (chosen - rejected))


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(log odds ratio)."""
    return -logsigmoid(log_odds(chosen) - log_odds(rejected))


def minimise(loss: Any, size: int) -> Tensor:
    """Logits at which a loss of them is least."""
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-13,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss(logits)
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach()


def test_tabular_dpo_reaches_the_bradley_terry_log_odds() -> None:
    """β·log(π/π_ref) differs between two answers by the log-odds with which one is preferred."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.randn(6, generator=generator, dtype=torch.float64)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    preferred = (strength[:, None] - strength[None, :]).sigmoid()

    def loss(logits: Tensor) -> Tensor:
        reward = logits.log_softmax(0) - reference
        return (preferred * dpo(reward[:, None], reward[None, :], BETA)).sum()

    policy = minimise(loss, 6).log_softmax(0)
    implicit = BETA * (policy - reference)
    gaps = implicit[:, None] - implicit[None, :]
    torch.testing.assert_close(gaps, strength[:, None] - strength[None, :], atol=1e-5, rtol=0)
    optimum = (reference + strength / BETA).softmax(0)  # π_ref·exp(R/β) once more
    torch.testing.assert_close(policy.exp(), optimum, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preference", [0.5, 0.7, 0.9])
def test_tabular_orpo_is_least_where_its_closed_form_says(preference: float) -> None:
    """Two answers, odds p/(1−p) and its inverse: p + 2λσ(2s) = q(1 + 2λ), s = log p/(1−p)."""

    def loss(logits: Tensor) -> Tensor:
        first, second = logits.log_softmax(0)
        of_first = -first + LAMBDA * odds_ratio(first, second)
        of_second = -second + LAMBDA * odds_ratio(second, first)
        return preference * of_first + (1 - preference) * of_second

    p = minimise(loss, 2).softmax(0)[0]
    found = p + 2 * LAMBDA * (2 * torch.logit(p)).sigmoid()
    assert float(found) == pytest.approx(preference * (1 + 2 * LAMBDA), abs=1e-7)


def test_the_odds_ratio_s_gradient_is_the_paper_s() -> None:
    """∇L_OR = −δ·h (eq. 8): δ = 1/(1 + odds⁺/odds⁻), h⁺ = 1/(1−p⁺), h⁻ = −1/(1−p⁻)."""
    chosen = torch.tensor([-0.01, -0.5, -0.8, -6.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-3.0, -0.4, -0.01, -0.7], dtype=torch.float64, requires_grad=True)
    odds_ratio(chosen, rejected).sum().backward()
    good, bad = chosen.detach().exp(), rejected.detach().exp()
    delta = 1 / (1 + (good / (1 - good)) / (bad / (1 - bad)))
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, -delta / (1 - good))
    torch.testing.assert_close(rejected.grad, delta / (1 - bad))


def answers(model: Any, ids: Tensor, attention: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and mean of the log-probabilities of the labelled tokens of each row."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    mask = targets != -100
    chosen = logits.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1) * mask
    return chosen.sum(1), chosen.sum(1) / mask.sum(1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("preferences")
    return [
        tiny_checkpoint(folder / str(seed), "llama", seed=seed, causal_lm=True) for seed in (0, 1)
    ]


@pytest.mark.slow
def test_trl_s_dpo_loss_is_the_formula(checkpoints: list[Path], tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in checkpoints)
    options = DPOConfig(
        output_dir=str(tmp_path),
        beta=BETA,
        per_device_train_batch_size=3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
    )
    trainer = DPOTrainer(
        policy,
        reference,
        options,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(checkpoints[0]),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    args = (batch["input_ids"], batch["attention_mask"], labels)
    plain = AutoModelForCausalLM.from_pretrained(checkpoints[0])
    plain_reference = AutoModelForCausalLM.from_pretrained(checkpoints[1])
    with torch.no_grad():
        ratios = answers(plain, *args)[0] - answers(plain_reference, *args)[0]
    ours = dpo(*ratios.chunk(2), beta=BETA).mean()
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)
    assert abs(ours.item() - 0.6931) > 0.01


@pytest.mark.slow
def test_trl_s_orpo_loss_is_the_formula(
    checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    options = ORPOConfig(
        output_dir=str(tmp_path),
        beta=LAMBDA,
        per_device_train_batch_size=3,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = ORPOTrainer(
        AutoModelForCausalLM.from_pretrained(checkpoints[0]),
        options,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(checkpoints[0]),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    plain = AutoModelForCausalLM.from_pretrained(checkpoints[0])
    means = {}
    for side in ("chosen", "rejected"):
        args = [batch[f"{side}_{key}"] for key in ("input_ids", "attention_mask", "labels")]
        with torch.no_grad():
            means[side] = answers(plain, *args)[1]
    with torch.no_grad():
        ids, attention = batch["chosen_input_ids"], batch["chosen_attention_mask"]
        # TRL's likelihood term is over the prompt too, and over all tokens of the batch together.
        everything = ids.masked_fill(attention == 0, -100)
        total = answers(plain, ids, attention, everything)[0].sum()
        nll = -total / (everything[:, 1:] != -100).sum()
    ours = nll + LAMBDA * odds_ratio(means["chosen"], means["rejected"]).mean()
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)
