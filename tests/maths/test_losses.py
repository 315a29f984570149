"""The losses' properties: what may not change them, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.maths.tokens import Tokens, make, wild
from torch import Tensor

from guerdon.trainer.rl.learner.losses import (
    Aggregation,
    TokenLoss,
    behaviour_weight,
    entropy_bonus,
    kl_loss,
    nll_loss,
    off_policy_sums,
    ppo_loss,
    token_weights,
    value_loss,
)

Loss = Callable[[Tokens, Tensor, Tensor], TokenLoss]


def _ppo(mode: str) -> Loss:
    return lambda t, x, w: ppo_loss(
        x,
        t.proximal_N,
        t.behaviour_N,
        t.advantages_N,
        w,
        t.mask_N,
        clip=0.2,
        clip_high=0.3,
        dual_clip=2.0,
        cap=1.2,
        mode=mode,  # type: ignore[arg-type]
    )


LOSSES: dict[str, tuple[str, Loss]] = {
    "ppo": ("logprobs_N", _ppo("truncate")),
    "ppo that masks": ("logprobs_N", _ppo("mask")),
    "kl": ("logprobs_N", lambda t, x, w: kl_loss(x, t.reference_N, t.behaviour_N, w, t.mask_N)),
    "nll": ("logprobs_N", lambda t, x, w: nll_loss(x, w, t.mask_N)),
    "entropy": ("entropy_N", lambda t, x, w: entropy_bonus(x, w, t.mask_N)),
    "value": (
        "values_N",
        lambda t, x, w: value_loss(x, t.old_values_N, t.advantages_N, w, t.mask_N, clip=0.2),
    ),
}


def weights(tokens: Tokens, aggregation: Aggregation = "token") -> Tensor:
    """Of one process that has everything."""
    own = [part.any() for part in tokens.mask_N.split(tokens.lengths_S.tolist())]
    return token_weights(
        tokens.lengths_S,
        tokens.mask_N,
        aggregation,
        n_samples=float(sum(own)),
        n_tokens=float(tokens.mask_N.sum()),
        max_tokens=12,
    )


def evaluate(
    name: str, tokens: Tokens, weights_N: Tensor
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient by token, and sums."""
    of, loss = LOSSES[name]
    learnt_N = getattr(tokens, of).clone().requires_grad_()
    made = loss(tokens, learnt_N, weights_N)
    (gradient_N,) = torch.autograd.grad(made.loss, learnt_N)
    return float(made.loss.detach()), gradient_N, {key: float(x) for key, x in made.sums.items()}


@pytest.mark.parametrize("name", LOSSES)
@given(tokens=wild, rubbish=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
@settings(deadline=None)
def test_masked_tokens_never_matter(name: str, tokens: Tokens, rubbish: float) -> None:
    loss, gradient_N, sums = evaluate(name, tokens, weights(tokens))
    again, gradient_again_N, sums_again = evaluate(name, tokens.filled(rubbish), weights(tokens))
    assert loss == again
    assert torch.equal(gradient_N, gradient_again_N)
    assert not gradient_N[~tokens.mask_N].any()
    assert sums == sums_again


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", LOSSES)
@given(tokens=wild, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_samples_changes_nothing(
    name: str, aggregation: Aggregation, tokens: Tokens, seed: int
) -> None:
    order = torch.randperm(len(tokens.lengths_S), generator=torch.Generator().manual_seed(seed))
    other = tokens.take(order)
    loss, gradient_N, sums = evaluate(name, tokens, weights(tokens, aggregation))
    again, gradient_again_N, sums_again = evaluate(name, other, weights(other, aggregation))
    assert again == pytest.approx(loss, abs=1e-10)
    torch.testing.assert_close(
        gradient_again_N, gradient_N[tokens.places(order)], atol=1e-10, rtol=0
    )
    assert sums_again == pytest.approx(sums, abs=1e-9)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", LOSSES)
@given(tokens=wild, data=st.data())
@settings(max_examples=30, deadline=None)
def test_micro_batches_sum_to_the_whole(
    name: str, aggregation: Aggregation, tokens: Tokens, data: st.DataObject
) -> None:
    """Cut anywhere, within samples too."""
    weights_N = weights(tokens, aggregation)
    loss, gradient_N, sums = evaluate(name, tokens, weights_N)
    count = len(weights_N)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    parts = []
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        cut = {
            field: getattr(tokens, field)[start:end]
            for field in tokens.__dataclass_fields__
            if field.endswith("_N")
        }
        parts.append(evaluate(name, replace(tokens, **cut), weights_N[start:end]))
    assert sum(part[0] for part in parts) == pytest.approx(loss, abs=1e-10)
    torch.testing.assert_close(
        torch.cat([part[1] for part in parts]), gradient_N, atol=1e-10, rtol=0
    )
    for key, value in sums.items():
        assert sum(part[2][key] for part in parts) == pytest.approx(value, abs=1e-9)


@given(tokens=wild)
@settings(deadline=None)
def test_token_weights_make_the_mean_that_was_asked_for(tokens: Tokens) -> None:
    x_N, mask_N = tokens.advantages_N, tokens.mask_N
    sizes = tokens.lengths_S.tolist()
    samples = [x[m] for x, m in zip(x_N.split(sizes), mask_N.split(sizes), strict=True) if m.any()]
    if not samples:
        assert not weights(tokens).any()
        return
    means = {
        "token": torch.cat(samples).mean(),
        "sequence": torch.stack([x.mean() for x in samples]).mean(),
        "constant": torch.stack([x.sum() / 12 for x in samples]).mean(),
    }
    for aggregation in ("token", "sequence", "constant"):
        found = (weights(tokens, aggregation) * x_N).sum()
        torch.testing.assert_close(found, means[aggregation], atol=1e-12, rtol=1e-12)


def test_tokens_that_the_cap_leaves_out_do_not_make_the_others_weigh_more() -> None:
    """Two tokens of the same advantage; the second is far off-policy."""
    behaviour_N = torch.tensor([-1.0, -3.0], dtype=torch.float64)
    now_N = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    mask_N, ones_N = torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.float64)
    weights_N = token_weights(
        torch.tensor([2]), mask_N, "token", n_samples=1, n_tokens=2, max_tokens=2
    )
    given = (now_N, now_N, behaviour_N, ones_N, weights_N, mask_N)
    masked = ppo_loss(*given, clip=0.2, cap=2.0, mode="mask")
    truncated = ppo_loss(*given, clip=0.2, cap=2.0, mode="truncate")
    uncapped = ppo_loss(*given, clip=0.2, cap=math.inf)
    assert float(masked.loss) == pytest.approx(-0.5)
    assert float(truncated.loss) == pytest.approx(-(1 + 2) / 2)
    assert float(uncapped.loss) == pytest.approx(-(1 + math.exp(2)) / 2)


def test_the_behaviour_weight_has_no_gradient_and_no_infinity() -> None:
    proximal_N = torch.tensor([0.0, -1.0, -1e4], requires_grad=True)
    w_N = behaviour_weight(proximal_N, torch.tensor([-1e4, -1.0, 0.0]), cap=math.inf, mode="mask")
    assert not w_N.requires_grad
    assert w_N.tolist() == pytest.approx([math.exp(20), 1.0, math.exp(-20)], rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "bounded"),
    [
        (1.0, 2.0, -2.0, 0, 0),
        (1.5, 2.0, -1.3 * 2, 1, 0),  # a good token: no more than 1 + ε_high
        (0.5, 2.0, -0.5 * 2, 0, 0),
        (0.5, -2.0, 0.8 * 2, 1, 0),  # a bad one: no less than 1 − ε
        (1.5, -2.0, 1.5 * 2, 0, 0),
        (9.0, -2.0, 3.0 * 2, 0, 1),  # and no more than c
    ],
)
def test_clipping_by_hand(
    ratio: float, advantage: float, loss: float, clipped: int, bounded: int
) -> None:
    old_N = torch.tensor([-2.0], dtype=torch.float64)
    now_N = (old_N + math.log(ratio)).requires_grad_()
    one_N = torch.ones(1, dtype=torch.float64)
    made = ppo_loss(
        now_N,
        old_N,
        old_N,
        advantage * one_N,
        one_N,
        one_N.bool(),
        clip=0.2,
        clip_high=0.3,
        dual_clip=3.0,
    )
    made.loss.backward()
    assert float(made.loss.detach()) == pytest.approx(loss)
    assert made.sums["clip_fraction"] == clipped
    assert made.sums["dual_clip_fraction"] == bounded
    assert float(made.maxima["ratio_max"]) == pytest.approx(ratio)
    assert float(made.sums["approx_kl"]) == pytest.approx(ratio - 1 - math.log(ratio))
    assert now_N.grad is not None
    moves = 0.0 if clipped or bounded else -ratio * advantage
    assert float(now_N.grad) == pytest.approx(moves)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (1.0, 1.0, 3.0, 0.5 * 4.0, 0),
        (2.0, 1.0, 3.0, 0.5 * 1.8**2, 1),  # it went too far, though the right way
        (0.0, 1.0, 3.0, 0.5 * 9.0, 0),  # the wrong way: the larger error counts
    ],
)
def test_value_clipping_by_hand(
    value: float, old: float, target: float, loss: float, clipped: int
) -> None:
    one_N = torch.ones(1, dtype=torch.float64)
    made = value_loss(value * one_N, old * one_N, target * one_N, one_N, one_N.bool(), clip=0.2)
    assert float(made.loss) == pytest.approx(loss)
    assert made.sums["value_clip_fraction"] == clipped
    free = value_loss(value * one_N, old * one_N, target * one_N, one_N, one_N.bool(), clip=0.0)
    assert float(free.loss) == pytest.approx(0.5 * (value - target) ** 2)


def test_off_policy_sums_by_hand() -> None:
    """w = 1 and 3, and a token that is left out."""
    behaviour_N = torch.tensor([-1.0, -3.0, 0.0])
    proximal_N = torch.tensor([-1.0, -3.0 + math.log(3), -9.0])
    sums, largest = off_policy_sums(
        proximal_N, behaviour_N, torch.tensor([True, True, False]), cap=2.0
    )
    assert {key: float(value) for key, value in sums.items()} == pytest.approx(
        {
            "tokens": 2,
            "weight": 4,
            "weight_squared": 10,
            "capped": 1,
            "k1": -math.log(3),
            "k3": 2 - math.log(3),
        }
    )
    assert float(largest) == pytest.approx(3)


def test_there_may_be_no_tokens() -> None:
    none = make([], seed=0)
    for name in LOSSES:
        loss, gradient_N, sums = evaluate(name, none, weights(none))
        assert loss == 0
        assert len(gradient_N) == 0
        assert not any(sums.values())
