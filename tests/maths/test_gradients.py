"""Known answers 3 and 4: gradients by enumeration, in float64, with no sampling.

Every completion of a tree stands for itself, weighed by its probability, where a run has draws.
"""

from __future__ import annotations

import pytest
import torch
from tests.maths.tree import Tree, random_rewards, random_table
from torch import Tensor

from guerdon.trainer.rl.learner.losses import kl_loss, ppo_loss

TREE = Tree(vocabulary=3, depth=3)
BANDIT = Tree(vocabulary=8, depth=1)
REWARDS_C = random_rewards(TREE, seed=3)
FREE = float("inf")


class Everything:
    """All tokens of all completions of a tree under one policy."""

    def __init__(self, tree: Tree, drawn_by: Tensor) -> None:
        self.tree = tree
        self.lengths_C, self.states_N, self.tokens_N = tree.tokens(
            torch.arange(len(tree.lengths_C))
        )
        self.owner_N = torch.arange(len(self.lengths_C)).repeat_interleave(self.lengths_C)
        self.probability_N = tree.logprobs(drawn_by).exp()[self.owner_N]
        self.mask_N = torch.ones(len(self.owner_N), dtype=torch.bool)

    def logprobs(self, logits: Tensor) -> Tensor:
        """log π of each token."""
        return logits.log_softmax(-1)[self.states_N, self.tokens_N]


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    return found


def policy_gradient(tree: Tree, logits: Tensor, rewards_C: Tensor) -> Tensor:
    """∇ E_π[R], by differentiating the sum itself."""
    return gradient((tree.logprobs(logits).exp() * rewards_C).sum(), logits)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_step_is_the_policy_gradient(seed: int) -> None:
    """π_θ = π_prox = π_μ: ρ = 1 and w = 1, nothing is clipped."""
    logits = random_table(TREE, seed).requires_grad_()
    all_of = Everything(TREE, logits.detach())
    now_N = all_of.logprobs(logits)
    old_N = now_N.detach()
    made = ppo_loss(
        now_N,
        old_N,
        old_N,
        REWARDS_C[all_of.owner_N],
        all_of.probability_N,
        all_of.mask_N,
        clip=0.2,
        dual_clip=3.0,
    )
    expected = policy_gradient(TREE, logits, REWARDS_C)
    torch.testing.assert_close(gradient(-made.loss, logits), expected, atol=1e-10, rtol=0)
    assert made.sums["clip_fraction"] == 0


@pytest.mark.parametrize("clip_high", [0.0, 0.4])
@pytest.mark.parametrize("dual_clip", [0.0, 1.5])
def test_decoupled_with_equal_policies_is_ppo(clip_high: float, dual_clip: float) -> None:
    """Against PPO as its paper has it, at a θ that is away from the old one."""
    logits = random_table(TREE, seed=5, scale=2.0).requires_grad_()
    old = random_table(TREE, seed=6, scale=2.0)
    all_of = Everything(TREE, old)
    now_N, old_N = all_of.logprobs(logits), all_of.logprobs(old)
    advantages_N = REWARDS_C[all_of.owner_N]
    made = ppo_loss(
        now_N,
        old_N,
        old_N,
        advantages_N,
        all_of.probability_N,
        all_of.mask_N,
        clip=0.2,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    loss = torch.zeros((), dtype=torch.float64)
    for token, (now, then) in enumerate(zip(now_N, old_N, strict=True)):
        ratio, advantage = (now - then).exp(), advantages_N[token]
        near = min(max(float(ratio.detach()), 1 - 0.2), 1 + (clip_high or 0.2))
        worth = min(ratio * advantage, near * advantage, key=Tensor.item)
        if dual_clip and advantage < 0:
            worth = max(worth, dual_clip * advantage, key=Tensor.item)
        loss = loss - all_of.probability_N[token] * worth
    assert made.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    ours, theirs = gradient(made.loss, logits), gradient(loss, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert made.sums["clip_fraction"] > 0
    assert (made.sums["dual_clip_fraction"] > 0) == (dual_clip > 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_behaviour_weight_makes_expectations_those_of_the_proximal_policy(seed: int) -> None:
    """E_μ[w·g] = E_prox[g] for the first update's gradient, where a completion is one token."""
    rewards_C = random_rewards(BANDIT, seed)
    logits = random_table(BANDIT, seed).requires_grad_()
    behaviour = random_table(BANDIT, seed=100 + seed)
    all_of = Everything(BANDIT, behaviour)
    now_N = all_of.logprobs(logits)
    made = ppo_loss(
        now_N,
        now_N.detach(),
        all_of.logprobs(behaviour),
        rewards_C,
        all_of.probability_N,
        all_of.mask_N,
        clip=0.2,
        cap=FREE,
    )
    expected = policy_gradient(BANDIT, logits, rewards_C)
    torch.testing.assert_close(gradient(-made.loss, logits), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_behaviour_weight_is_right_for_each_token_at_its_state(seed: int) -> None:
    """In a tree it makes the next token's expectation right, given what came before.

    So the whole is the gradient of π_prox's token choices at the states that π_μ comes by.
    """
    logits = random_table(TREE, seed).requires_grad_()
    behaviour = random_table(TREE, seed=100 + seed)
    worth = random_table(TREE, seed=200 + seed)  # an advantage of each token at each state
    all_of = Everything(TREE, behaviour)
    now_N = all_of.logprobs(logits)
    made = ppo_loss(
        now_N,
        now_N.detach(),
        all_of.logprobs(behaviour),
        worth[all_of.states_N, all_of.tokens_N],
        all_of.probability_N,
        all_of.mask_N,
        clip=0.2,
        cap=FREE,
    )
    visits = torch.zeros(TREE.states, dtype=torch.float64)
    visits = visits.index_add(0, all_of.states_N, all_of.probability_N)
    expected = gradient((visits[:, None] * logits.softmax(-1) * worth).sum(), logits)
    torch.testing.assert_close(gradient(-made.loss, logits), expected, atol=1e-10, rtol=0)


def test_without_the_weight_the_gradient_is_another() -> None:
    """Forgetting w is a mistake that these tests see."""
    rewards_C = random_rewards(BANDIT, seed=0)
    logits = random_table(BANDIT, seed=0).requires_grad_()
    all_of = Everything(BANDIT, random_table(BANDIT, seed=100))
    now_N = all_of.logprobs(logits)
    old_N = now_N.detach()
    made = ppo_loss(now_N, old_N, old_N, rewards_C, all_of.probability_N, all_of.mask_N, clip=0.2)
    expected = policy_gradient(BANDIT, logits, rewards_C)
    assert (gradient(-made.loss, logits) - expected).abs().max() > 0.05


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_k2_as_a_loss_has_the_gradient_of_the_divergence(seed: int, off_policy: bool) -> None:
    """∇KL(π_θ ‖ π_ref), also by tokens that another policy drew; k3's gradient is another."""
    logits = random_table(BANDIT, seed).requires_grad_()
    reference = random_table(BANDIT, seed=50 + seed)
    behaviour = random_table(BANDIT, seed=60 + seed) if off_policy else logits.detach()
    all_of = Everything(BANDIT, behaviour)
    given = (
        all_of.logprobs(logits),
        all_of.logprobs(reference),
        all_of.logprobs(behaviour),
        all_of.probability_N,
        all_of.mask_N,
    )
    p, q = logits.log_softmax(-1), reference.log_softmax(-1)
    expected = gradient((p.exp() * (p - q)).sum(), logits)
    by_k2 = gradient(kl_loss(*given, estimator="k2", cap=FREE).loss, logits)
    torch.testing.assert_close(by_k2, expected, atol=1e-10, rtol=0)
    logits_again = all_of.logprobs(logits)
    by_k3 = gradient(kl_loss(logits_again, *given[1:], estimator="k3", cap=FREE).loss, logits)
    assert (by_k3 - expected).abs().max() > 0.01
