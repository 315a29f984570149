"""Known answers 1 and 2 by the real learner: a language model reaches π* ∝ π_ref·exp(R/β).

The model is a Llama over a handful of tokens, so that all its completions can be enumerated. It
draws at a temperature that isn't 1, and is judged by what `transformers` makes of the saved
folder, not by the learner's own word.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.learner.support import apart, gradients, plain_logprobs, settings
from tests.maths.tree import Tree, random_rewards
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    PolicyGradientSettings,
    PPOSettings,
    RLOOSettings,
)

BETA = 0.5
TEMPERATURE = 0.7
BANDIT = Tree(vocabulary=8, depth=1)
TREE = Tree(vocabulary=3, depth=3)
PROMPT = np.array([1, 2], np.int32)


def checkpoint(folder: Path, tree: Tree) -> Path:
    """A Llama of one layer over the tree's tokens.

    Its states are far enough apart that the objective itself, differentiated exactly and without
    any learner, leads to the optimum (TV 0.0002 on the tree). In other random models what raises
    one completion lowers its siblings to nothing, and every on-policy method stays there.
    """
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=tree.vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5 * 32**-0.5)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    model.save_pretrained(folder)
    return folder


def samples(tree: Tree, rewards_C: Tensor) -> list[Sample]:
    """Every completion there is."""
    return [
        Sample(
            task_uid=0,
            index=0,
            prompt_ids_P=PROMPT,
            response_ids_T=np.array(path, np.int32),
            behaviour_logprobs_T=np.zeros(len(path), np.float32),
            versions_T=np.ones(len(path), np.int32),
            finished=path[-1] == 0,
            text=str(path),
            reward=float(rewards_C[place]),
        )
        for place, path in enumerate(tree.completions)
    ]


def enumerate_policy(model: Any, all_C: list[Sample]) -> tuple[list[Tensor], Tensor]:
    """log π of each token of each completion, and of the whole, at the sampling temperature."""
    with torch.no_grad():
        tokens = [plain_logprobs(model, sample, TEMPERATURE) for sample in all_C]
    return tokens, torch.stack([part.double().sum() for part in tokens])


def draw(
    tokens: list[Tensor],
    all_C: list[Sample],
    groups: int,
    size: int,
    seed: int,
    *,
    evenly: bool = False,
) -> list[Any]:
    """Groups of completions, drawn from the policy as it is; evenly: as often as it expects."""
    logprobs_C = torch.stack([part.double().sum() for part in tokens])
    generator = torch.Generator().manual_seed(seed)
    places = torch.multinomial(logprobs_C.exp(), groups * size, True, generator=generator)
    if evenly:
        quantiles = (torch.arange(groups * size, dtype=torch.float64) + 0.5) / (groups * size)
        places = torch.searchsorted(logprobs_C.exp().cumsum(0), quantiles)
        places = places.clamp(max=len(all_C) - 1)[torch.randperm(len(places), generator=generator)]
    found = []
    for uid, part in enumerate(places.view(groups, size).tolist()):
        drawn = []
        for index, place in enumerate(part):
            one = all_C[place]
            drawn.append(
                Sample(
                    task_uid=uid,
                    index=index,
                    prompt_ids_P=PROMPT,
                    response_ids_T=one.response_ids_T,
                    behaviour_logprobs_T=tokens[place].numpy(),
                    versions_T=one.versions_T,
                    finished=one.finished,
                    text=one.text,
                    reward=one.reward,
                )
            )
        found.append(Group(Task(uid, PromptRow(0, ()), PROMPT), drawn))
    return found


def learner_tokens(learner: Learner, all_C: list[Sample]) -> list[Tensor]:
    """The same as `enumerate_policy`, by the learner's own pass."""
    lengths = [sample.tokens for sample in all_C]
    offsets = np.cumsum([0, *lengths])[:-1].tolist()
    with torch.no_grad():
        flat_N = learner._logprobs(learner._pack(all_C, offsets), sum(lengths))
    return list(flat_N.split(lengths))


class Problem:
    """A tree's completions, their rewards, and the first policy."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self.folder = folder
        self.start = checkpoint(folder / "start", tree)
        self.rewards_C = random_rewards(tree, seed=2)
        self.all_C = samples(tree, self.rewards_C)
        self.first_C = self._of(self.start)

    def _of(self, folder: Path) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return enumerate_policy(model, self.all_C)[1]

    def optimum(self, beta: float) -> Tensor:
        """log π* of each completion."""
        return (self.first_C + self.rewards_C / beta).log_softmax(0)

    def train(self, run: PolicyGradientSettings, groups: int, *, evenly: bool = False) -> Tensor:
        """log π of each completion, by the folder that is saved in the end; evenly: see `draw`."""
        learner = Learner(run, build(run), self.start)
        for step in range(run.steps):
            tokens = learner_tokens(learner, self.all_C)
            size = run.samples_per_prompt
            learner.step(draw(tokens, self.all_C, groups, size, seed=step, evenly=evenly))
        learner.save_final(self.folder / "final", "float32")
        return self._of(self.folder / "final")

    def check(self, reached_C: Tensor, best_C: Tensor) -> None:
        """There was something to learn, and it has been learnt."""
        assert distance(self.first_C, best_C) > 0.2
        assert distance(reached_C, best_C) < 0.01
        gained, right = (
            float((of_C.exp() * (of_C - self.first_C)).sum()) for of_C in (reached_C, best_C)
        )
        assert gained == pytest.approx(right, rel=0.01)


def distance(first_C: Tensor, second_C: Tensor) -> float:
    """Total variation of two policies, given as logarithms."""
    return 0.5 * float((first_C.exp() - second_C.exp()).abs().sum())


def run_of(kind: Any, tree: Tree, **values: Any) -> Any:
    """Settings that go on until nothing is left to learn.

    The bandit's rate is too much for the tree: RLOO then drives a completion that deserves 8 %
    to 0.01 % within 50 steps. It is drawn no more, so only the others come to their proportions.
    """
    fixed: dict[str, Any] = {
        "kl_coef": BETA,
        "temperature": TEMPERATURE,
        "lr_schedule": "linear",
        "lr": 1e-3 if tree is TREE else 3e-3,
        "steps": 200 if tree is TREE else 120,
        "samples_per_prompt": 64,
        "max_grad_norm": 10.0,
        "minibatches": 2,
        "micro_batch_tokens": 9999,
        "max_prompt_tokens": 4,
        "max_tokens": 4,
    }
    return settings(kind, **(fixed | values))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "kind", "values"),
    [
        (BANDIT, RLOOSettings, {"steps": 60}),
        (BANDIT, PPOSettings, {"steps": 60}),
        (TREE, RLOOSettings, {"samples_per_prompt": 32}),
        (TREE, PPOSettings, {"samples_per_prompt": 32}),
        (TREE, PPOSettings, {"samples_per_prompt": 32, "value": "own"}),
    ],
    ids=["bandit-rloo", "bandit-ppo", "tree-rloo", "tree-ppo", "tree-ppo-own"],
)
def test_the_real_learner_reaches_the_optimum(
    tmp_path: Path, tree: Tree, kind: Any, values: dict[str, Any]
) -> None:
    problem = Problem(tmp_path, tree)
    # By chance alone it would take four times the samples.
    run, groups = run_of(kind, tree, **values), 4 if tree is TREE else 8
    reached_C = problem.train(run, groups, evenly=True)
    problem.check(reached_C, problem.optimum(BETA))


@pytest.mark.slow
def test_grpo_reaches_the_optimum_of_its_own_beta(tmp_path: Path) -> None:
    """Its baseline holds the completion itself, which shrinks rewards by 1 − 1/G but not KL."""
    problem = Problem(tmp_path, BANDIT)
    run = run_of(GRPOSettings, BANDIT, scale_by_std=False, lr=2e-3, steps=80)
    reached_C = problem.train(run, groups=16)
    problem.check(reached_C, problem.optimum(BETA / (1 - 1 / 64)))


@pytest.mark.slow
def test_grpo_divided_by_std_has_another_optimum(tmp_path: Path) -> None:
    """That of β times the standard deviation of the rewards which that optimum itself draws.

    (At a β of 1 only the best completion is left: what is drawn becomes alike, and that makes
    rewards count more.)
    """
    beta = 1.5
    problem = Problem(tmp_path, BANDIT)
    best_C = problem.first_C
    for _ in range(500):
        weight_C, rewards_C = best_C.exp(), problem.rewards_C
        std = float((weight_C * (rewards_C - weight_C @ rewards_C) ** 2).sum().sqrt())
        best_C = problem.optimum(beta * std)
    run = run_of(GRPOSettings, BANDIT, kl_coef=beta, samples_per_prompt=512)
    reached_C = problem.train(run, groups=2)
    problem.check(reached_C, best_C)
    assert distance(reached_C, problem.optimum(beta)) > 0.03


def judge(groups: list[Group], seed: int) -> None:
    """Bradley-Terry says which of two completions is better: rewards become 1 and 0.

    With probability σ(r − r'), but drawn systematically: of the m groups that hold the same two,
    one of them wins m·σ times, rounded up or down by chance. Else noise would need many steps.
    """
    rng = np.random.default_rng(seed)
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        group.samples.sort(key=lambda sample: sample.text)
        first, second = group.samples
        alike.setdefault((first.text, second.text), []).append(group)
    for members in alike.values():
        first, second = members[0].samples
        wins = len(members) / (1 + math.exp(second.reward - first.reward))
        for place, group in enumerate(members):
            better = place < math.floor(wins + rng.random())
            group.samples[0].reward, group.samples[1].reward = float(better), float(not better)


@pytest.mark.slow
def test_online_dpo_reaches_the_optimum_of_a_bradley_terry_oracle(tmp_path: Path) -> None:
    """π ∝ π_ref·exp(r/β), though it never sees r: the fixed point in `online_dpo`'s docstring.

    (The tree's noise needs minutes to average out: `tests/maths` has it, by tables.)
    """
    problem = Problem(tmp_path, BANDIT)
    run = settings(
        OnlineDPOSettings,
        beta=BETA,
        temperature=TEMPERATURE,
        lr_schedule="linear",
        lr=3e-3,
        steps=120,
        samples_per_prompt=2,
        unfinished=True,
        max_grad_norm=10.0,
        micro_batch_tokens=9999,
        max_prompt_tokens=4,
        max_tokens=4,
    )
    learner = Learner(run, build(run), problem.start)
    for step in range(run.steps):
        tokens = learner_tokens(learner, problem.all_C)
        groups = draw(tokens, problem.all_C, 256, 2, seed=step)
        judge(groups, seed=step)
        learner.step(groups)
    learner.save_final(problem.folder / "final", "float32")
    problem.check(problem._of(problem.folder / "final"), problem.optimum(BETA))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "values"),
    [(RLOOSettings, {}), (PPOSettings, {"lam": 1.0, "whiten": False, "value_coef": 0.0})],
    ids=["rloo", "ppo"],
)
def test_the_gradient_is_that_of_the_objective(
    tmp_path: Path, kind: Any, values: dict[str, Any]
) -> None:
    """E_π[R] − β·KL(π ‖ π_ref), differentiated by enumeration; away from π_ref too."""
    problem = Problem(tmp_path, TREE)
    run = run_of(kind, TREE, minibatches=1, aggregation="constant")
    learner = Learner(replace(run, **values), build(replace(run, **values)), problem.start)
    for step in range(2):
        for more in range(30 * step):
            tokens = learner_tokens(learner, problem.all_C)
            learner.step(draw(tokens, problem.all_C, 8, 64, seed=more))
        model = AutoModelForCausalLM.from_pretrained(problem.start, dtype=torch.float32).eval()
        model.load_state_dict(learner.module.lm.state_dict())
        logprobs_C = torch.stack(
            [plain_logprobs(model, one, TEMPERATURE).double().sum() for one in problem.all_C]
        )
        returns_C = problem.rewards_C - BETA * (logprobs_C - problem.first_C)
        (-(logprobs_C.exp() * returns_C).sum() / run.max_tokens).backward()
        right = {f"lm.{name}": p.grad for name, p in model.named_parameters()}
        tokens = learner_tokens(learner, problem.all_C)
        found = gradients(learner, draw(tokens, problem.all_C, 64, 64, seed=99, evenly=True))
        assert apart(right, {name: found[name] for name in right}) < 0.02
