"""Rewards to advantages: against plain loops, by hand, and what may not change them."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.maths.ranks import ALONE, together
from tests.maths.tokens import Tokens, wild
from torch import Tensor

from guerdon.trainer.rl.learner.advantages import (
    Moments,
    RunningMoments,
    gae,
    group_advantages,
    last_tokens,
    leave_one_out,
    moments,
    shape_rewards,
    token_rewards,
    whiten,
)

TRUE = torch.tensor(True)


def plain_gae(tokens: Tokens, gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """GAE as the paper sums it: A_t = Σ_l (γλ)^l δ_{t+l}, over the tokens that count."""
    advantages, returns = [0.0] * len(tokens.mask_N), [0.0] * len(tokens.mask_N)
    rewards, values = tokens.advantages_N.tolist(), tokens.values_N.tolist()
    ends = tokens.lengths_S.cumsum(0).tolist()
    for start, end in zip(tokens.starts_S.tolist(), ends, strict=True):
        places = [at for at in range(start, end) if tokens.mask_N[at]]
        for first, at in enumerate(places):
            for step, then in enumerate(places[first:]):
                later = places[first + step + 1 : first + step + 2]
                after = values[later[0]] if later else 0.0
                delta = rewards[then] + gamma * after - values[then]
                advantages[at] += (gamma * lam) ** step * delta
            returns[at] = advantages[at] + values[at]
    return advantages, returns


@given(tokens=wild, gamma=st.floats(0, 1), lam=st.floats(0, 1))
@settings(deadline=None)
def test_gae_is_a_plain_double_loop(tokens: Tokens, gamma: float, lam: float) -> None:
    spoilt = tokens.filled(math.nan)
    made = gae(
        spoilt.advantages_N, spoilt.values_N, tokens.lengths_S, tokens.mask_N, gamma=gamma, lam=lam
    )
    expected = plain_gae(tokens, gamma, lam)
    assert made[0].tolist() == pytest.approx(expected[0], abs=1e-10)
    assert made[1].tolist() == pytest.approx(expected[1], abs=1e-10)


def test_gae_by_hand() -> None:
    """Two samples, rewards at their ends; γ = 0.5, λ = 0.5."""
    rewards_N = torch.tensor([0.0, 1.0, 2.0])
    values_N = torch.tensor([0.5, 0.4, 0.1])
    advantages_N, returns_N = gae(
        rewards_N,
        values_N,
        torch.tensor([2, 1]),
        torch.ones(3, dtype=torch.bool),
        gamma=0.5,
        lam=0.5,
    )
    # δ = (0 + 0.5·0.4 − 0.5, 1 − 0.4, 2 − 0.1); A_0 = δ_0 + 0.25·δ_1
    assert advantages_N.tolist() == pytest.approx([-0.3 + 0.25 * 0.6, 0.6, 1.9])
    assert returns_N.tolist() == pytest.approx([0.35, 1.0, 2.0])


@given(tokens=wild)
@settings(deadline=None)
def test_with_lambda_1_returns_are_what_is_still_to_come(tokens: Tokens) -> None:
    """γ = λ = 1: whatever the values are."""
    args = (tokens.lengths_S, tokens.mask_N)
    _, returns_N = gae(tokens.advantages_N, tokens.values_N, *args, gamma=1.0, lam=1.0)
    zeros_N = torch.zeros_like(tokens.advantages_N)
    to_go_N, _ = gae(tokens.advantages_N, zeros_N, *args, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns_N, to_go_N, atol=1e-10, rtol=0)


@given(tokens=wild)
@settings(deadline=None)
def test_the_reward_lands_on_the_last_token_that_counts(tokens: Tokens) -> None:
    rewards_N = token_rewards(tokens.rewards_S, tokens.lengths_S, tokens.mask_N)
    for sample, part in enumerate(rewards_N.split(tokens.lengths_S.tolist())):
        mask = tokens.mask_N[tokens.places(torch.tensor([sample]))]
        expected = torch.zeros(len(part), dtype=torch.float64)
        if mask.any():
            expected[int(mask.nonzero().max())] = tokens.rewards_S[sample]
        assert torch.equal(part, expected)


def test_without_a_mask_the_reward_is_on_the_very_last_token() -> None:
    lengths_S = torch.tensor([3, 1, 2])
    last_S, has_S = last_tokens(lengths_S, torch.ones(6, dtype=torch.bool))
    assert last_S.tolist() == [2, 3, 5]
    assert has_S.all()
    penalty_N = torch.full((6,), 0.1)
    rewards_N = token_rewards(
        torch.tensor([1.0, 2.0, 3.0]), lengths_S, torch.ones(6, dtype=torch.bool), penalty_N
    )
    assert rewards_N.tolist() == pytest.approx([-0.1, -0.1, 0.9, 1.9, -0.1, 2.9])


def test_rewards_are_scaled_then_clipped_then_penalised() -> None:
    raw_S = torch.tensor([10.0, -1.0, -30.0], dtype=torch.float64)
    finished_S = torch.tensor([True, False, False])
    shaped_S = shape_rewards(raw_S, finished_S, scale=2.0, clip=3.0, penalty=1.0)
    assert shaped_S.tolist() == [3.0, -1.5, -4.0]
    same_S = shape_rewards(raw_S, finished_S, scale=1.0, clip=0.0, penalty=0.0)
    assert torch.equal(same_S, raw_S)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"reward 1 of 2 is {bad}"):
        shape_rewards(torch.tensor([0.0, bad]), TRUE, scale=1.0, clip=1.0, penalty=0.0)


def split(rewards_S: Tensor, groups_S: Tensor) -> dict[int, list[float]]:
    """Each group's rewards."""
    groups: dict[int, list[float]] = {}
    for group, reward in zip(groups_S.tolist(), rewards_S.tolist(), strict=True):
        groups.setdefault(group, []).append(reward)
    return groups


@given(tokens=wild, scale=st.booleans())
@settings(deadline=None)
def test_group_advantages_by_plain_statistics(tokens: Tokens, scale: bool) -> None:
    """Groups of any sizes, in any order."""
    groups = split(tokens.rewards_S, tokens.groups_S)
    made_S = group_advantages(tokens.rewards_S, tokens.groups_S, scale_by_std=scale)
    alone_S = leave_one_out(tokens.rewards_S, tokens.groups_S)
    for sample, group in enumerate(tokens.groups_S.tolist()):
        rewards, reward = groups[group], float(tokens.rewards_S[sample])
        if len(set(rewards)) == 1:
            assert made_S[sample] == 0
            assert alone_S[sample] == 0
            continue
        expected = (reward - mean(rewards)) / (stdev(rewards) + 1e-4 if scale else 1)
        assert float(made_S[sample]) == pytest.approx(expected, abs=1e-10)
        others = (sum(rewards) - reward) / (len(rewards) - 1)
        assert float(alone_S[sample]) == pytest.approx(reward - others, abs=1e-10)


def test_a_group_of_equal_rewards_says_nothing() -> None:
    """Exactly: 0.1 is not a sum of halves, and its mean over seven is not 0.1."""
    rewards_S, groups_S = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert not group_advantages(rewards_S, groups_S, scale_by_std=True).any()
    assert not leave_one_out(rewards_S, groups_S).any()


def test_leaving_one_out_has_no_bias() -> None:
    """A sample's baseline doesn't depend on its own reward."""
    groups_S = torch.zeros(3, dtype=torch.int64)
    low_S = leave_one_out(torch.tensor([0.0, 1.0, 4.0]), groups_S)
    high_S = leave_one_out(torch.tensor([9.0, 1.0, 4.0]), groups_S)
    assert float(high_S[0] - low_S[0]) == pytest.approx(9.0)


@given(tokens=wild)
@settings(deadline=None)
def test_whitening(tokens: Tokens) -> None:
    """Mean 0 and variance 1 over the mask, 0 elsewhere."""
    spoilt_N, mask_N = tokens.filled(math.nan).advantages_N, tokens.mask_N
    of_all = moments(spoilt_N, mask_N, ALONE)
    white_N = whiten(spoilt_N, mask_N, of_all)
    assert not white_N[~mask_N].any()
    kept = tokens.advantages_N[mask_N]
    if len(kept) < 2:
        return
    assert of_all.mean == pytest.approx(float(kept.mean()), abs=1e-12)
    assert of_all.variance == pytest.approx(float(kept.var()), abs=1e-12)
    found = white_N[mask_N]
    assert float(found.mean()) == pytest.approx(0, abs=1e-7)
    assert float(found.var()) == pytest.approx(1, abs=1e-4)


@given(tokens=wild, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_whitening_by_parts_is_whitening_the_whole(tokens: Tokens, seed: int) -> None:
    """Three ranks, of which some may have nothing."""
    x_N, mask_N = tokens.advantages_N + 1e4, tokens.mask_N
    whole_N = whiten(x_N, mask_N, moments(x_N, mask_N, ALONE))
    rank_N = torch.randint(0, 3, x_N.shape, generator=torch.Generator().manual_seed(seed))
    pieces = [rank_N == rank for rank in range(3)]
    parts = together(
        3,
        lambda rank, reduce: whiten(
            x_N[pieces[rank]],
            mask_N[pieces[rank]],
            moments(x_N[pieces[rank]], mask_N[pieces[rank]], reduce),
        ),
    )
    for piece, part in zip(pieces, parts, strict=True):
        torch.testing.assert_close(part, whole_N[piece], atol=1e-6, rtol=0)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), max_size=6))
@settings(deadline=None)
def test_running_moments_are_those_of_everything_so_far(steps: list[list[float]]) -> None:
    running = RunningMoments()
    for step in steps:
        x_S = torch.tensor(step, dtype=torch.float64)
        running.update(moments(x_S, torch.ones(len(x_S), dtype=torch.bool), ALONE))
        again = RunningMoments()
        again.load_state_dict(running.state_dict())
        assert again.moments == running.moments
    everything = [x for step in steps for x in step]
    assert running.moments.count == len(everything)
    if len(everything) > 1:
        assert running.moments.mean == pytest.approx(mean(everything), abs=1e-9)
        assert running.moments.std == pytest.approx(stdev(everything), rel=1e-6, abs=1e-6)
    if len(set(everything)) < 2:
        assert running.scale == 1.0


def test_moments_of_nothing() -> None:
    assert Moments().merge(Moments()) == Moments()
    assert Moments().variance == 0
    assert Moments(1, 5.0, 0.0).std == 0
