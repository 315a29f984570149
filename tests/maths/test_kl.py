"""Known answer 6: k1, k2 and k3 against the exact divergence; and β's movement."""

from __future__ import annotations

import pytest
import torch
from tests.maths.ranks import ALONE
from tests.maths.support import settings
from tests.maths.tree import Tree, random_table
from torch import Tensor

from guerdon.trainer.common.measuring.kl_estimate import kl_estimate
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.algorithms.base import StepBatch
from guerdon.trainer.rl.learner.algorithms.online_dpo import OnlineDPO
from guerdon.trainer.rl.learner.algorithms.policy_gradient import AdaptiveKL, KLWeight
from guerdon.trainer.rl.learner.losses import segment_sum, sequence_kl
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
    RunSettings,
)

TREE = Tree(vocabulary=4, depth=3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])
def test_estimators_mean_the_divergence(seed: int, scale: float) -> None:
    """k1 and k3 exactly; k2 up to third order in the distance."""
    other = random_table(TREE, seed)
    policy = other + scale * random_table(TREE, seed=10 + seed)
    p, q = policy.log_softmax(-1), other.log_softmax(-1)
    exact_S = (p.exp() * (p - q)).sum(-1)
    mean = {k: (p.exp() * kl_estimate(p, q, k)).sum(-1) for k in ("k1", "k2", "k3")}
    torch.testing.assert_close(mean["k1"], exact_S, atol=1e-12, rtol=0)
    torch.testing.assert_close(mean["k3"], exact_S, atol=1e-12, rtol=0)
    if scale < 0.1:
        torch.testing.assert_close(mean["k2"], exact_S, atol=0, rtol=0.1)
    assert bool((kl_estimate(p, q, "k3") >= 0).all())
    assert bool((kl_estimate(p, q, "k2") >= 0).all())


def test_k3_varies_less_than_k1_near_the_reference() -> None:
    other = random_table(TREE, seed=0)
    p = (other + 0.1 * random_table(TREE, seed=1)).log_softmax(-1)
    q = other.log_softmax(-1)
    second = {k: (p.exp() * kl_estimate(p, q, k).square()).sum() for k in ("k1", "k3")}
    assert second["k3"] < 0.01 * second["k1"]


def test_the_divergence_of_completions_is_exact() -> None:
    """E[Σ_t k1] over the tree is the divergence of the two distributions over completions."""
    policy, other = random_table(TREE, seed=3), random_table(TREE, seed=4)
    lengths_C, states_N, tokens_N = TREE.tokens(torch.arange(len(TREE.completions)))
    p_N = policy.log_softmax(-1)[states_N, tokens_N]
    q_N = other.log_softmax(-1)[states_N, tokens_N]
    kl_C = sequence_kl(p_N, q_N, p_N, torch.ones(len(p_N), dtype=torch.bool), lengths_C)
    p_C, q_C = TREE.logprobs(policy), TREE.logprobs(other)
    expected = (p_C.exp() * (p_C - q_C)).sum()
    assert float((p_C.exp() * kl_C).sum()) == pytest.approx(float(expected), abs=1e-12)


def drawn(tree: Tree, draws: int) -> Tensor:
    """Places of completions: each as often as a policy with equal logits draws it, in 4^depth."""
    often = [draws // tree.vocabulary ** len(path) for path in tree.completions]
    return torch.arange(len(often)).repeat_interleave(torch.tensor(often))


def stale_batch(tree: Tree, draws: int, now: Tensor, reference: Tensor) -> StepBatch:
    """What a policy with equal logits, long ago, drew for a step of the policy as it is now."""
    behaviour = torch.zeros_like(now)
    places = drawn(tree, draws)
    lengths_S, states_N, tokens_N = tree.tokens(places)
    behaviour_N, proximal_N, reference_N = (
        table.log_softmax(-1)[states_N, tokens_N] for table in (behaviour, now, reference)
    )
    samples = len(places)
    return StepBatch(
        lengths_S=lengths_S,
        groups_S=torch.arange(samples) // 4,
        rewards_S=torch.randn(samples, dtype=torch.float64),
        finished_S=torch.ones(samples, dtype=torch.bool),
        behaviour_N=behaviour_N,
        proximal_N=proximal_N,
        reference_N=reference_N,
        values_N=torch.zeros(len(states_N)),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [PPOSettings, GRPOSettings, RLOOSettings, OnlineDPOSettings])
def test_stale_tokens_do_not_bias_the_divergence(kind: type[RunSettings], seed: int) -> None:
    """By enumeration: all that a stale policy draws, in its proportions, and the exact KL.

    One token: KL(π_prox ‖ π_ref). Several: the sum of that of the next token, over the states
    that μ comes by.
    """
    bandit = Tree(vocabulary=4, depth=1)
    reference = random_table(bandit, seed)
    now = reference + random_table(bandit, seed=10 + seed)
    algorithm = build(settings(kind))
    if isinstance(algorithm, OnlineDPO):
        nothing = torch.zeros(0, 2, dtype=torch.int64)
        algorithm.pairs = lambda batch: nothing  # type: ignore[method-assign]
    found = algorithm.prepare(stale_batch(bandit, 4, now, reference), ALONE).metrics
    p, q = now.log_softmax(-1), reference.log_softmax(-1)
    exact = float((p.exp() * (p - q)).sum())
    assert found["kl"] == pytest.approx(exact, abs=1e-12)
    assert found["kl_token"] == pytest.approx(exact, abs=1e-12)
    unweighed = float((p - q).mean())
    assert abs(unweighed - exact) > 0.05  # the test has teeth

    now, reference = random_table(TREE, seed), random_table(TREE, seed=20 + seed)
    batch = stale_batch(TREE, 64, now, reference)
    found = algorithm.prepare(batch, ALONE).metrics
    p, q = now.log_softmax(-1), reference.log_softmax(-1)
    kl_of_state = (p.exp() * (p - q)).sum(-1)
    expected = float(kl_of_state[TREE.tokens(drawn(TREE, 64))[1]].sum()) / 64
    assert found["kl"] == pytest.approx(expected, abs=1e-12)


def test_an_adaptive_beta_goes_by_the_policy_as_it_is() -> None:
    """Drawn by π_ref, tokens say k1 < 0; the true divergence is over the target."""
    bandit = Tree(vocabulary=4, depth=1)
    reference = torch.zeros(1, 4, dtype=torch.float64)
    now = random_table(bandit, seed=1)
    run = settings(GRPOSettings, kl_coef=0.5, kl_target=0.02, kl_horizon=10.0)
    algorithm = build(run)
    first = algorithm.prepare(stale_batch(bandit, 4, now, reference), ALONE)
    assert first.metrics["kl"] > 0.022
    second = algorithm.prepare(stale_batch(bandit, 4, now, reference), ALONE)
    assert second.kl_coef > first.kl_coef == 0.5


def test_extreme_ratios_stay_finite_and_keep_their_gradient_finite() -> None:
    p = torch.tensor([0.0, -1000.0, -1e-3], requires_grad=True)
    k3 = kl_estimate(p, torch.tensor([-1000.0, 0.0, -1e-3]), "k3")
    k3.sum().backward()
    assert bool(torch.isfinite(k3).all())
    assert p.grad is not None
    assert bool(torch.isfinite(p.grad).all())


def test_segments_are_summed_each_on_its_own() -> None:
    sums = segment_sum(torch.arange(6.0), torch.tensor([1, 0, 3, 2]))
    assert sums.tolist() == [0.0, 0.0, 6.0, 9.0]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (2.0, 0.1),
        (2.2, 0.1 * (1 + 0.1 * 64 / 1000)),  # in proportion
        (20.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # at most a fifth
        (-1.0, 0.1 * (1 - 0.2 * 64 / 1000)),  # an estimate below nothing
    ],
)
def test_beta_moves_to_its_target(kl: float, expected: float) -> None:
    controller = AdaptiveKL(0.1, target=2.0, horizon=1000)
    controller.update(kl, samples=64)
    assert controller.value == pytest.approx(expected)
    other = AdaptiveKL(0.5, target=2.0, horizon=1000)
    other.load_state_dict(controller.state_dict())
    assert other.value == controller.value


def test_beta_finds_the_target_of_a_policy_that_answers_it() -> None:
    """A divergence of 1/β has its target of 4 at β = 0.25."""
    controller = AdaptiveKL(0.01, target=4.0, horizon=200)
    for _ in range(500):
        controller.update(1 / controller.value, samples=64)
    assert controller.value == pytest.approx(0.25, rel=0.01)


def test_beta_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="nan"):
        AdaptiveKL(0.1, target=1.0, horizon=1).update(float("nan"), 1)


def test_a_fixed_beta_stays() -> None:
    controller = KLWeight(0.3)
    controller.update(100.0, 1000)
    controller.load_state_dict(controller.state_dict())
    assert controller.value == 0.3
