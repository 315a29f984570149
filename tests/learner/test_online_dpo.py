"""Online DPO's loss and gradient by the real learner, against plain transformers and TRL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tests.learner.support import apart, gradients, make_learner, settings, wild_groups
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from guerdon.trainer.common.process_group import SINGLE_PROCESS
from guerdon.trainer.common.services.types import Group, Sample
from guerdon.trainer.fine_tune.dpo import DirectTrainer
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import OnlineDPOSettings

Policy = Callable[[str], Path]
Pair = tuple[Sample, Sample]
BETA = 0.3
LOSSES = ["sigmoid", "ipo", "hinge"]


def moved(folder: Path, dtype: torch.dtype) -> Any:
    """The policy some way from its reference, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model.to(dtype)


def extremes(groups: Sequence[Group]) -> list[Pair]:
    """Of what ended by itself, the best and the worst; equal texts don't occur."""
    found = []
    for group in groups:
        ended = sorted((s for s in group.samples if s.finished), key=lambda s: s.reward)
        if len(ended) > 1:
            found.append((ended[-1], ended[0]))
    return found


def padded(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Whole rows, padded on the right: ids, attention, and where the completions are."""
    width = max(len(s.prompt_ids_P) + s.tokens for s in samples)
    ids, attention, response = (torch.zeros(len(samples), width).long() for _ in range(3))
    for row, sample in enumerate(samples):
        prompt, end = len(sample.prompt_ids_P), len(sample.prompt_ids_P) + sample.tokens
        whole = [*sample.prompt_ids_P.tolist(), *sample.response_ids_T.tolist()]
        ids[row, :end], attention[row, :end] = torch.tensor(whole), 1
        response[row, prompt:end] = 1
    return ids, attention, response


def completions(model: Any, samples: Sequence[Sample], temperature: float) -> tuple[Tensor, Tensor]:
    """log π of each completion, and how many tokens it has."""
    ids, attention, response = padded(samples)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1] / temperature
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1) * response[:, 1:]
    return tokens.sum(1), response.sum(1)


def plain_loss(model: Any, reference: Any, pairs: Sequence[Pair], run: OnlineDPOSettings) -> Tensor:
    """By the papers."""
    scores = []
    for side in zip(*pairs, strict=True):
        own, tokens = completions(model, side, run.temperature)
        with torch.no_grad():
            ratio = own - completions(reference, side, run.temperature)[0]
        score = own - own.detach() + ratio
        scores.append(score / tokens if run.loss == "ipo" else score)
    delta = scores[0] - scores[1]
    losses = {
        "sigmoid": -F.logsigmoid(run.beta * delta),
        "ipo": (delta - 1 / (2 * run.beta)) ** 2,
        "hinge": torch.relu(1 - run.beta * delta),
    }
    return losses[run.loss].mean()


def gradient(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """By the learner's names."""
    model.zero_grad()
    loss.backward()
    return {f"lm.{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def learner_at(folder: Path, model: Any, run: OnlineDPOSettings, *, exact: bool) -> Learner:
    """It has the model's weights, and the folder's as its reference."""
    learner = make_learner(folder, run, exact=exact)
    learner.module.lm.load_state_dict(model.state_dict())
    return learner


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_autograd_s_on_whole_padded_rows(policy: Policy, loss: Any) -> None:
    folder, groups = policy("llama"), wild_groups(6, 5)
    run = settings(OnlineDPOSettings, loss=loss, beta=BETA, temperature=0.8, micro_batch_tokens=30)
    model = moved(folder, torch.float64)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    pairs = extremes(groups)
    assert 3 < len(pairs) <= 6
    right = plain_loss(model, reference, pairs, run)
    expected = gradient(model, right)
    learner = learner_at(folder, model, run, exact=True)
    metrics: list[dict[str, float]] = []
    real = learner.step

    def listen(groups: Sequence[Group]) -> dict[str, float]:
        metrics.append(real(groups))
        return metrics[0]

    learner.step = listen  # type: ignore[method-assign]
    found = gradients(learner, groups)
    assert apart(expected, found) < 1e-6
    (row,) = metrics
    assert row["loss"] == row["policy_loss"] == pytest.approx(right.item(), rel=1e-6)
    assert row["pairs"] == len(pairs)
    rewards = [a.reward - b.reward for a, b in pairs]
    assert row["pair_margin"] == pytest.approx(sum(rewards) / len(pairs))
    with torch.no_grad():
        sides = [
            run.beta * (completions(model, s, 0.8)[0] - completions(reference, s, 0.8)[0])
            for s in zip(*pairs, strict=True)
        ]
    assert row["chosen_reward"] == pytest.approx(sides[0].mean().item(), rel=1e-5)
    assert row["rejected_reward"] == pytest.approx(sides[1].mean().item(), rel=1e-5)
    assert row["margin"] == pytest.approx((sides[0] - sides[1]).mean().item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx((sides[0] > sides[1]).double().mean().item())


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_trl_s_on_the_same_pairs(policy: Policy, tmp_path: Path, loss: Any) -> None:
    """`DPOTrainer`'s own loss and gradient of the same tokens: what `guerdon train dpo` runs."""
    folder, groups = policy("llama"), wild_groups(6, 5, seed=2)
    pairs = extremes(groups)
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        beta=BETA,
        loss_type=[loss],
        max_length=None,
        use_cpu=True,
        per_device_train_batch_size=len(pairs),
        bf16=False,
        report_to=[],
    )
    rows = {
        "prompt": [""] * len(pairs),
        "prompt_ids": [better.prompt_ids_P.tolist() for better, _ in pairs],
        "chosen_ids": [better.response_ids_T.tolist() for better, _ in pairs],
        "rejected_ids": [worse.response_ids_T.tolist() for _, worse in pairs],
    }
    model = moved(folder, torch.float32)
    trainer = DirectTrainer(
        lengths=[1] * len(pairs),
        processes=SINGLE_PROCESS,
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        ref_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    model.eval()
    theirs = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    expected = gradient(model, theirs)
    run = settings(OnlineDPOSettings, loss=loss, beta=BETA)
    learner = learner_at(folder, moved(folder, torch.float32), run, exact=False)
    assert apart(expected, gradients(learner, groups)) < 1e-4
    assert learner.step(groups)["loss"] == pytest.approx(theirs.item(), rel=1e-4)


def test_what_is_in_no_pair_is_not_computed_again(policy: Policy) -> None:
    """With the gradient only pairs are; without, all, to measure the policy."""
    groups = wild_groups(4, 6)
    learner = make_learner(policy("llama"), settings(OnlineDPOSettings))
    seen: list[int] = []
    real = learner._backward

    def listen(row: Any, *rest: Any) -> Any:
        seen.append(row.tokens_M.numel())
        return real(row, *rest)

    learner._backward = listen  # type: ignore[method-assign]
    learner.step(groups)
    assert sum(seen) == sum(sample.tokens for pair in extremes(groups) for sample in pair)
