"""The gradient of a whole optimiser step, as the trainers make it, against closed forms."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.fine_tune.support import answer_logprobs, settings_of
from tests.trainer.toy import WORDS, toy_rows, toy_settings, write_rows
from torch import Tensor
from transformers import TrainerCallback

from guerdon.trainer.common.models.language_model import load_lm
from guerdon.trainer.fine_tune import read_task as fine_tune
from guerdon.trainer.reward.objectives.read_task import read_task

ALGORITHMS = ("sft", "dpo", "orpo", "reward")


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of every optimiser step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """Called by the trainer."""
        named = model.named_parameters()
        self.found.append({n: p.grad.clone() for n, p in named if p.grad is not None})


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Six rows of very different lengths."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for words in (1, 2, 3, 30, 4, 60):
        chosen, rejected = (" ".join(draw.choices(WORDS, k=words)) for _ in range(2))
        rows.append({"prompt": "which", "chosen": chosen, "rejected": rejected + " no"})
    return write_rows(tmp_path / "uneven.jsonl", rows)


def begun(
    algorithm: str, begin: dict[str, Path], data: Path, folder: Path, watch: Any, **more: Any
) -> tuple[Any, Any, Callable[[Any], Tensor]]:
    """A trainer, its model in float64, and the step's loss as a closed form of a model."""
    more = {"max_grad_norm": 1e9, "epochs": 1.0, "lr": 1e-3} | more
    if algorithm == "reward":
        own = toy_settings(begin["base"], (data, data), folder / "run", center=0.3, **more)
        task: Any = read_task(own)
        model = task.load()
        exact = copy.deepcopy(model).double()
        return task.make_trainer(model, folder, [watch]), exact, lambda m: rewards_loss(m, task)
    settings = settings_of(algorithm, begin["policy"], (data, data), folder / "run", **more)
    task, model = fine_tune.read_task(settings), load_lm(begin["policy"])
    torch.manual_seed(0)
    with torch.no_grad():  # some way from the reference
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    reference = load_lm(begin["policy"]).double()
    exact = copy.deepcopy(model).double()  # TRL patches the model that it is given
    trainer = task.make_trainer(model, folder, [watch])
    rows = task.inputs.train.rows
    return trainer, exact, lambda m: policy_loss(algorithm, m, reference, rows)


def policy_loss(algorithm: str, model: Any, reference: Any, rows: Any) -> Tensor:
    """One mean over the tokens of the step, and one over its pairs."""
    if algorithm == "sft":
        return -torch.cat([answer_logprobs(model, list(p), list(a)) for p, a in rows]).mean()
    tokens, pairs = [], []
    for row in rows:
        both = [answer_logprobs(model, row.prompt, ids) for ids in (row.chosen, row.rejected)]
        if algorithm == "dpo":
            before = [
                answer_logprobs(reference, row.prompt, ids).detach()
                for ids in (row.chosen, row.rejected)
            ]
            gap = (both[0] - before[0]).sum() - (both[1] - before[1]).sum()
            pairs.append(-F.logsigmoid(0.1 * gap))
        else:
            tokens.append(answer_logprobs(model, row.prompt[:1], [*row.prompt[1:], *row.chosen]))
            odds = [part.mean() - torch.log1p(-part.mean().exp()) for part in both]
            pairs.append(-0.1 * F.logsigmoid(odds[0] - odds[1]))
    loss = torch.stack(pairs).mean()
    return loss - torch.cat(tokens).mean() if tokens else loss


def rewards_loss(model: Any, task: Any) -> Tensor:
    """-log σ(r₊ - r₋) + λ(r₊ + r₋)², the mean over pairs."""
    losses = []
    for pair in task.inputs.train.pairs:
        better, worse = (
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0]
            for ids in (pair.chosen, pair.rejected)
        )
        losses.append(-F.logsigmoid(better - worse) + 0.3 * (better + worse) ** 2)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("batch", "accumulate"), [(6, 1), (2, 3), (4, 2)], ids=["whole", "thirds", "uneven"]
)
def test_a_step_is_one_mean_however_it_is_divided(
    algorithm: str,
    batch: int,
    accumulate: int,
    begin: dict[str, Path],
    uneven: Path,
    tmp_path: Path,
) -> None:
    watch = Gradients()
    trainer, exact, loss = begun(
        algorithm, begin, uneven, tmp_path, watch, batch_size=batch, accumulate=accumulate
    )
    right = torch.autograd.grad(loss(exact), list(exact.parameters()))
    trainer.train()
    [found] = watch.found
    error, size = 0.0, 0.0
    for (name, _), wanted in zip(exact.named_parameters(), right, strict=True):
        error += float((found[name].double() - wanted).square().sum())
        size += float(wanted.square().sum())
    assert (error / size) ** 0.5 < 1e-3
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx([loss(exact).item()], abs=2e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dropout_of_lora_is_at_work_while_it_trains(
    algorithm: str, begin: dict[str, Path], tmp_path: Path
) -> None:
    """In training alone: the same seed gives another gradient, and the same measures before."""
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(8, seed=1))
    found, scores = [], []
    for dropout in (0.0, 0.5, 0.5):
        watch = Gradients()
        trainer, _, _ = begun(
            algorithm, begin, data, tmp_path, watch, batch_size=8, lora_r=4, lora_dropout=dropout
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.eval()
        with torch.no_grad():
            scores.append(trainer.compute_loss(trainer.model, dict(batch)).item())
        torch.manual_seed(7)
        trainer.train()
        (gradient,) = watch.found
        found.append(torch.cat([part.flatten() for part in gradient.values()]))
    assert scores[0] == scores[1] == scores[2]
    assert float((found[1] - found[0]).norm() / found[0].norm()) > 0.1
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_models_own_dropout_is_off_where_answers_are_compared(
    algorithm: str, dropping: dict[str, Path], tmp_path: Path
) -> None:
    """Supervised learning keeps what the model's config says; pairs are compared without."""
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(8, seed=1))
    trainer, _, _ = begun(algorithm, dropping, data, tmp_path, Gradients(), batch_size=8)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    losses = {trainer.compute_loss(trainer.model, dict(batch)).item() for _ in range(4)}
    assert (len(losses) == 1) == (algorithm != "sft")
