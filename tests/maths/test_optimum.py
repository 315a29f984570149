"""Known answers 1 and 2: training reaches π* ∝ π_ref·exp(R/β).

At the optimum R − β·log(π/π_ref) is the same for every completion, so advantages vanish and
with them the noise: a right estimator comes as near as it is let, a wrong one stays off. With KL as
a loss (GRPO) some noise stays, so it draws more.
"""

from __future__ import annotations

import pytest
import torch
from tests.maths.support import settings
from tests.maths.tree import Learner, Tree, random_rewards, random_table
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
    RunSettings,
)

BETA = 0.5
BANDIT = Tree(vocabulary=8, depth=1)
TREE = Tree(vocabulary=3, depth=3)
PAIRS, STEPS = 4096, 200
GOLDEN = 0.5 * (5**0.5 - 1)


def distance(first_C: Tensor, second_C: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((first_C - second_C).abs().sum())


def divergence(first_C: Tensor, second_C: Tensor) -> float:
    """KL in nats."""
    return float((first_C * (first_C.log() - second_C.log())).sum())


def train(tree: Tree, run: RunSettings, steps: int, lr: float, samples: int = 512) -> Learner:
    """Train on completions of the policy as it is, in groups of `samples_per_prompt`."""
    reference = random_table(tree, seed=1)
    learner = Learner(tree, build(run), reference, reference, random_rewards(tree, seed=2), lr)
    groups_S = torch.arange(samples) // run.samples_per_prompt
    for step in range(steps):
        learner.decay(1 - step / steps)
        now = learner.logits.detach().clone()
        learner.step(tree.draw(now, samples, learner.generator), groups_S, now)
    return learner


def check(learner: Learner, beta: float = BETA, within: float = 0.01) -> None:
    """The policy is the closed-form optimum."""
    tree, reference = learner.tree, learner.reference
    best_C = tree.optimum(reference, learner.rewards_C, beta)
    start_C = tree.logprobs(reference).exp()
    reached_C = tree.logprobs(learner.logits.detach()).exp()
    assert distance(start_C, best_C) > 0.2  # there was something to learn
    assert distance(reached_C, best_C) < within
    gained = divergence(reached_C, start_C)
    assert gained == pytest.approx(divergence(best_C, start_C), rel=0.01)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("tree", [BANDIT, TREE], ids=["bandit", "tree"])
def test_ppo_reaches_the_optimum(tree: Tree, whiten: bool) -> None:
    """By GAE with λ < 1, which is right once the values are, with minibatches and clipping."""
    run = settings(PPOSettings, kl_coef=BETA, whiten=whiten, minibatches=2)
    check(train(tree, run, steps=300, lr=0.1), within=0.003)


@pytest.mark.parametrize("tree", [BANDIT, TREE], ids=["bandit", "tree"])
def test_rloo_reaches_the_optimum(tree: Tree) -> None:
    run = settings(RLOOSettings, kl_coef=BETA, minibatches=2)
    check(train(tree, run, steps=300, lr=0.1), within=0.003)


def test_online_dpo_reaches_the_optimum_of_a_bradley_terry_oracle() -> None:
    """It is never told R: which of two completions is better is drawn with σ(R − R').

    Of equal pairs the right share is drawn, by a sequence that fills [0, 1) evenly.
    """
    reference, rewards_C = random_table(TREE, seed=1), random_rewards(TREE, seed=2)
    run = settings(OnlineDPOSettings, beta=BETA, samples_per_prompt=2)
    learner = Learner(TREE, build(run), reference, reference, rewards_C, lr=0.1)
    for step in range(STEPS):
        learner.decay(1 - step / STEPS)
        now = learner.logits.detach().clone()
        drawn_K2 = TREE.draw(now, 2 * PAIRS, learner.generator).view(-1, 2).sort().values
        drawn_K2 = drawn_K2[(99 * drawn_K2[:, 0] + drawn_K2[:, 1]).argsort()]
        chance_K = (torch.arange(PAIRS) * GOLDEN + step * GOLDEN**2) % 1
        margin_K = rewards_C[drawn_K2[:, 0]] - rewards_C[drawn_K2[:, 1]]
        lost_K = (chance_K > margin_K.sigmoid()).long()
        pairs_K2 = 2 * torch.arange(PAIRS)[:, None] + torch.stack([lost_K, 1 - lost_K], 1)
        learner.step(drawn_K2.flatten(), torch.arange(2 * PAIRS) // 2, now, pairs_K2=pairs_K2)
    check(learner)


@pytest.mark.parametrize("size", [4, 16])
def test_grpo_reaches_the_optimum_of_its_own_beta(size: int) -> None:
    """Its baseline holds the completion itself, which shrinks rewards by 1 − 1/G but not KL."""
    run = settings(
        GRPOSettings, kl_coef=BETA, scale_by_std=False, samples_per_prompt=size, minibatches=2
    )
    learner = train(BANDIT, run, steps=400, lr=0.05, samples=8192)
    check(learner, beta=BETA / (1 - 1 / size))


def test_a_score_one_token_off_would_be_seen() -> None:
    """The check has teeth: rewards of other completions lead to another policy."""
    run = settings(RLOOSettings, kl_coef=BETA, minibatches=2)
    learner = train(TREE, run, steps=300, lr=0.1)
    learner.rewards_C = learner.rewards_C.roll(1)
    with pytest.raises(AssertionError):
        check(learner)
