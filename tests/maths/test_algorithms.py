"""The algorithms as the learner drives them: ranks, resuming, metrics, and each one's terms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.maths.ranks import ALONE, together
from tests.maths.support import settings
from tests.maths.tokens import Tokens, make, wild
from tests.support.metric_keys import describe

from guerdon.trainer.common.measuring.kl_estimate import kl_estimate
from guerdon.trainer.rl.learner.advantages import (
    gae,
    group_advantages,
    leave_one_out,
    token_rewards,
)
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.algorithms.base import (
    Algorithm,
    Reduce,
    summarise,
)
from guerdon.trainer.rl.learner.algorithms.online_dpo import OnlineDPO
from guerdon.trainer.rl.learner.algorithms.online_rft import OnlineRFT
from guerdon.trainer.rl.learner.losses import TokenLoss, segment_sum
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    PPOSettings,
    RFTSettings,
    RLOOSettings,
    RunSettings,
)

BUSY: dict[str, Any] = {
    "reward_scale": "running", "reward_clip": 2.0, "missing_eos_penalty": 0.5,
    "kl_target": 1.0, "entropy_coef": 0.01, "dual_clip": 3.0,
}  # fmt: skip
RUNS: dict[str, RunSettings] = {
    "ppo": settings(PPOSettings, **BUSY),
    "ppo with kl in the loss": settings(PPOSettings, kl_in="loss", aggregation="sequence", **BUSY),
    "grpo": settings(GRPOSettings, aggregation="constant", behaviour_mode="mask", **BUSY),
    "rloo": settings(RLOOSettings, **BUSY),
    "online-rft": settings(OnlineRFTSettings),
    "online-dpo": settings(OnlineDPOSettings),
    "online-dpo with ipo": settings(OnlineDPOSettings, loss="ipo"),
}
STATELESS = {name for name in RUNS if name.startswith("online")}
TOKENS = make([3, 1, 7, 2, 5, 4, 4, 6], seed=3)


def choose(algorithm: Algorithm, tokens: Tokens) -> None:
    """Accept the finished completions, and pair as the tokens say."""
    if isinstance(algorithm, OnlineRFT):
        algorithm.accepted = lambda batch: tokens.finished_S  # type: ignore[method-assign]
    if isinstance(algorithm, OnlineDPO):
        algorithm.pairs = lambda batch: tokens.pairs_K2  # type: ignore[method-assign]


def one_step(
    algorithm: Algorithm, tokens: Tokens, reduce: Reduce
) -> tuple[torch.Tensor, dict[str, float], TokenLoss]:
    """The gradient by token of the log-probabilities (and values), and the step's metrics."""
    choose(algorithm, tokens)
    prepared = algorithm.prepare(tokens.batch(), reduce)
    weights_N = algorithm.weights(tokens.lengths_S, prepared.mask, reduce)
    logprobs_N = tokens.logprobs_N.clone().requires_grad_()
    values_N = tokens.values_N.clone().requires_grad_()
    everything = torch.arange(len(weights_N))
    parts = algorithm.loss(
        prepared.take(everything, weights_N), logprobs_N, tokens.entropy_N, values_N
    )
    parts.loss.backward()
    assert logprobs_N.grad is not None
    gradient_N = logprobs_N.grad
    if values_N.grad is not None:
        gradient_N = torch.stack([gradient_N, values_N.grad])
    return gradient_N, prepared.metrics, parts


@pytest.mark.parametrize("name", RUNS)
def test_every_metric_is_documented_and_finite(name: str) -> None:
    _, metrics, parts = one_step(build(RUNS[name]), TOKENS, ALONE)
    sums = {key: float(value) for key, value in parts.sums.items()}
    maxima = {key: float(value) for key, value in parts.maxima.items()}
    found = metrics | summarise(sums, maxima, updates=1)
    assert not [key for key in found if describe(key) is None]
    assert all(math.isfinite(value) for value in found.values())
    assert found["loss"] == pytest.approx(parts.loss.item())
    assert {"loss", "policy_loss", "mismatch_kl", "weight", "entropy"} <= set(found)


@pytest.mark.parametrize("name", RUNS)
@given(tokens=wild, seed=st.integers(0, 1000))
@hypothesis_settings(deadline=None, max_examples=25)
def test_ranks_change_neither_gradient_nor_metrics(name: str, tokens: Tokens, seed: int) -> None:
    """Prompts spread over three ranks, of which some may have none."""
    whole, metrics, _ = one_step(build(RUNS[name]), tokens, ALONE)
    group_rank = torch.randint(0, 3, (99,), generator=torch.Generator().manual_seed(seed))
    owners = [(group_rank[tokens.groups_S] == rank).nonzero().squeeze(1) for rank in range(3)]
    algorithms = [build(RUNS[name]) for _ in range(3)]
    parts = together(
        3, lambda rank, reduce: one_step(algorithms[rank], tokens.take(owners[rank]), reduce)
    )
    for owner, algorithm, (gradient, of_rank, _) in zip(owners, algorithms, parts, strict=True):
        expected = whole[..., tokens.places(owner)]
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-6)
        assert of_rank == pytest.approx(metrics, rel=1e-6, abs=1e-9)
        assert algorithm.state_dict() == algorithms[0].state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_algorithm_goes_on_as_it_would_have(name: str) -> None:
    other = make([4, 4, 2, 9], seed=8)
    unbroken, before = build(RUNS[name]), build(RUNS[name])
    for algorithm in (unbroken, before):
        one_step(algorithm, TOKENS, ALONE)
    resumed = build(RUNS[name])
    resumed.load_state_dict(before.state_dict())
    ours, theirs = one_step(resumed, other, ALONE), one_step(unbroken, other, ALONE)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    if name not in STATELESS:
        assert not torch.equal(ours[0], one_step(build(RUNS[name]), other, ALONE)[0])


@pytest.mark.parametrize("name", RUNS)
def test_what_is_masked_never_matters(name: str) -> None:
    ours = one_step(build(RUNS[name]), TOKENS, ALONE)
    theirs = one_step(build(RUNS[name]), TOKENS.filled(math.nan), ALONE)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_ppo_puts_kl_into_token_rewards_and_whitens_after_returns() -> None:
    run = settings(PPOSettings, kl_coef=0.1, lam=0.9, gamma=0.99)
    prepared = build(run).prepare(TOKENS.batch(), ALONE)
    k1_N = kl_estimate(TOKENS.proximal_N, TOKENS.reference_N, "k1")
    args = (TOKENS.lengths_S, TOKENS.mask_N)
    rewards_N = token_rewards(TOKENS.rewards_S, *args, 0.1 * k1_N)
    raw_N, returns_N = gae(rewards_N, TOKENS.old_values_N, *args, gamma=0.99, lam=0.9)
    assert prepared.returns is not None
    torch.testing.assert_close(prepared.returns, returns_N)
    kept = raw_N[TOKENS.mask_N]
    white = (kept - kept.mean()) / (kept.var() + 1e-8).sqrt()
    torch.testing.assert_close(prepared.advantages[TOKENS.mask_N], white)
    assert prepared.metrics["advantage"] == pytest.approx(kept.mean().item())
    errors = (returns_N - TOKENS.old_values_N)[TOKENS.mask_N]
    explained = 1 - errors.var() / returns_N[TOKENS.mask_N].var()
    assert prepared.metrics["explained_variance"] == pytest.approx(explained.item())


def test_grpo_and_rloo_give_every_token_its_completion_s_advantage() -> None:
    grpo = build(settings(GRPOSettings)).prepare(TOKENS.batch(), ALONE)
    expected_S = group_advantages(TOKENS.rewards_S, TOKENS.groups_S, scale_by_std=True)
    spread_N = expected_S.repeat_interleave(TOKENS.lengths_S)
    torch.testing.assert_close(grpo.advantages, torch.where(TOKENS.mask_N, spread_N, 0.0))
    rloo = build(settings(RLOOSettings, kl_coef=0.3)).prepare(TOKENS.batch(), ALONE)
    k1_N = kl_estimate(TOKENS.proximal_N, TOKENS.reference_N, "k1") * TOKENS.mask_N
    penalised_S = TOKENS.rewards_S - 0.3 * segment_sum(k1_N, TOKENS.lengths_S)
    spread_N = leave_one_out(penalised_S, TOKENS.groups_S).repeat_interleave(TOKENS.lengths_S)
    torch.testing.assert_close(rloo.advantages, torch.where(TOKENS.mask_N, spread_N, 0.0))


def test_beta_of_a_step_is_the_one_before_it_moved() -> None:
    run = settings(GRPOSettings, kl_coef=0.5, kl_target=0.01, kl_horizon=10.0)
    algorithm = build(run)
    first = algorithm.prepare(TOKENS.batch(), ALONE)
    second = algorithm.prepare(TOKENS.batch(), ALONE)
    assert first.kl_coef == first.metrics["kl_coef"] == 0.5
    way = 1 if first.metrics["kl"] > 0.01 else -1
    assert second.kl_coef == pytest.approx(0.5 * (1 + way * 0.2 * 8 / 10))


def test_kl_and_entropy_enter_the_loss_by_their_coefficients() -> None:
    """All else equal, the difference of two losses is the term."""
    tokens = replace(TOKENS, mask_N=torch.ones_like(TOKENS.mask_N))
    plain = one_step(build(settings(GRPOSettings, kl_coef=0.0)), tokens, ALONE)[2]
    kl = one_step(build(settings(GRPOSettings, kl_coef=0.1)), tokens, ALONE)[2]
    entropy = one_step(build(settings(GRPOSettings, kl_coef=0.0, entropy_coef=0.2)), tokens, ALONE)[
        2
    ]
    assert kl.loss.item() - plain.loss.item() == pytest.approx(0.1 * kl.sums["kl_loss"].item())
    bonus = 0.2 * tokens.entropy_N.mean().item()
    assert plain.loss.item() - entropy.loss.item() == pytest.approx(bonus, rel=1e-5)


def test_online_rft_is_the_mean_likelihood_of_what_was_kept() -> None:
    algorithm = build(settings(OnlineRFTSettings))
    gradient_N, metrics, parts = one_step(algorithm, TOKENS, ALONE)
    kept_N = TOKENS.finished_S.repeat_interleave(TOKENS.lengths_S) & TOKENS.mask_N
    assert 0 < int(kept_N.sum()) < int(TOKENS.mask_N.sum())
    assert parts.loss.item() == pytest.approx(-TOKENS.logprobs_N[kept_N].mean().item())
    torch.testing.assert_close(gradient_N, -kept_N.double() / kept_N.sum(), atol=1e-7, rtol=0)
    assert metrics["accepted"] == pytest.approx(TOKENS.finished_S.double().mean().item())


def test_online_rft_may_keep_nothing() -> None:
    tokens = replace(TOKENS, finished_S=torch.zeros_like(TOKENS.finished_S))
    gradient_N, metrics, parts = one_step(build(settings(OnlineRFTSettings)), tokens, ALONE)
    assert parts.loss.item() == 0
    assert not gradient_N.any()
    assert metrics["accepted"] == 0


@pytest.mark.parametrize(
    "field", ["rewards_S", "behaviour_N", "proximal_N", "reference_N", "values_N"]
)
def test_what_is_no_number_is_not_learnt_from(field: str) -> None:
    tokens = replace(TOKENS, mask_N=torch.ones_like(TOKENS.mask_N))
    batch = tokens.batch()
    spoilt = getattr(batch, field).clone()
    spoilt[2] = math.nan
    with pytest.raises(ValueError, match=r"2 of \d+ is nan"):
        build(settings(PPOSettings)).prepare(replace(batch, **{field: spoilt}), ALONE)


def test_rft_has_no_learner() -> None:
    with pytest.raises(ValueError, match="RFTSettings"):
        build(settings(RFTSettings))
