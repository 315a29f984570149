"""Online DPO: preference pairs among the policy's own completions, made at every step anew.

    y⁺, y⁻ ~ π_θ, of which the reward prefers y⁺
    h(y) = log π_θ(y|x)/π_ref(y|x)                      (ipo: its mean over the tokens)
    L    = mean over pairs of ℓ(h(y⁺) − h(y⁻))          ℓ: `losses.pair_loss`

Guo et al. 2024, arXiv:2402.04792; what draws the pairs has no gradient. A pair's loss couples two
completions that may lie in different micro-batches. But its gradient is

    ∇L = ℓ'(Δ)·(∇ log π_θ(y⁺) − ∇ log π_θ(y⁻))         (sigmoid: ℓ' = −β·σ(−βΔ))

so once Δ is known, every token has a constant slope. Δ comes from the passes at the start of the
step, which are passes under the weights that the step's only update begins from: it is exact.

Where two completions are drawn for each prompt and Bradley-Terry says which is better, with
probability p = σ(r(y) − r(y')), the fixed point of the sigmoid is RLHF's, π ∝ π_ref·exp(r/β). There
each pair's expected slope, β·(σ(βΔ) − p), is 0, whatever draws the pairs; and as the loss under any
one way of drawing them is convex in h, strictly but for a constant, the gradient is 0 nowhere else.
A reward model never doubts: then no margin is enough for the sigmoid, and the policy is held near
π_ref only by slopes that fall as margins grow. (IPO's turn at 1/2β, the hinge's end at 1/β.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.trainer.common.services.pair_selection import pick_pairs
from guerdon.trainer.rl.learner.advantages import require_finite
from guerdon.trainer.rl.learner.algorithms.base import (
    Algorithm,
    ImpliedReward,
    Prepared,
    Reduce,
    StepBatch,
)
from guerdon.trainer.rl.learner.algorithms.measured import (
    check,
    divergence,
    off_policy,
    regrouped,
    token_mask,
)
from guerdon.trainer.rl.learner.losses import (
    TokenLoss,
    entropy_bonus,
    linear_loss,
    pair_loss,
    segment_sum,
)
from guerdon.trainer.rl.learner.rejection import earned
from guerdon.trainer.rl.settings import OnlineDPOSettings


@dataclass(frozen=True, kw_only=True)
class Paired(Prepared):
    """What the loss of pairs needs of each token."""

    proximal: Tensor
    slopes: Tensor
    """float32. The loss's derivative by the token's log-probability, before the step."""
    losses: Tensor
    """float32. The token's share of the loss before the step."""


class OnlineDPO(Algorithm):
    """DPO's loss on pairs of a prompt's completions."""

    needs_reference = True

    def __init__(self, settings: OnlineDPOSettings) -> None:
        self._settings = settings

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Paired:
        """The pairs' losses, and the slopes of the tokens of their completions."""
        mask_N = token_mask(batch)
        check(batch, mask_N, self)
        require_finite("reward", batch.rewards_S)
        assert batch.reference_N is not None
        pairs_K2 = self.pairs(batch)
        ratio_N = (batch.proximal_N.double() - batch.reference_N.double()).where(mask_N, 0.0)
        ratios_S = segment_sum(ratio_N, batch.lengths_S)
        tokens_S = segment_sum(mask_N.double(), batch.lengths_S).clamp(min=1.0)
        pairs = reduce.sum(torch.tensor([len(pairs_K2)], dtype=torch.float64)).item()
        losses_S, slopes_S, in_pair_S = self._of_pairs(pairs_K2, ratios_S, tokens_S, pairs)
        metrics = off_policy(batch, mask_N, math.inf, reduce)
        del metrics["capped_fraction"]  # no weight is used, so none is capped
        metrics |= divergence(batch, batch.reference_N, mask_N, reduce)[0]
        metrics |= self._measure(batch, pairs_K2, ratios_S, reduce)

        def spread(values_S: Tensor) -> Tensor:
            return values_S.repeat_interleave(batch.lengths_S).to(batch.proximal_N.dtype)

        mask_N = mask_N & in_pair_S.repeat_interleave(batch.lengths_S)
        slopes_N = spread(slopes_S)
        return Paired(
            mask=mask_N,
            learnable=mask_N & (slopes_N != 0),
            proximal=batch.proximal_N,
            slopes=slopes_N,
            losses=spread(losses_S / tokens_S),
            metrics=metrics,
        )

    def pairs(self, batch: StepBatch) -> Tensor:
        """Places in S of each pair's better completion and worse one, int64 [K, 2]."""
        at = {id(sample): place for place, sample in enumerate(batch.samples)}
        groups = list(regrouped(batch).values())
        picked = pick_pairs(groups, self._settings, lambda sample: earned(sample, self._settings))
        pairs = [[at[id(better)], at[id(worse)]] for _, better, worse in picked.pairs]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """1: the mean over the step's pairs is in the slopes, for there is one update."""
        return mask_N.to(torch.float32)

    def loss(
        self,
        tokens: Paired,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> TokenLoss:
        """The tokens' share of the pairs' loss."""
        assert tokens.weights is not None
        found = linear_loss(
            logprobs_M, tokens.proximal, tokens.slopes, tokens.losses, tokens.weights, tokens.mask
        )
        loss = found.loss.detach()
        sums = found.sums | {"loss": loss, "policy_loss": loss}
        if entropy_M is not None:
            sums |= entropy_bonus(entropy_M.detach(), tokens.weights, tokens.mask).sums
        return TokenLoss(found.loss, sums, {})

    def warning(self, row: Mapping[str, float]) -> str:
        """Says so where a step made no preference pair."""
        if row["pairs"]:
            return ""
        return (
            "a step made no preference pair, and so learned nothing: are the rewards of a prompt's "
            "completions all alike, or --max-tokens too small?"
        )

    def implied_reward(self) -> ImpliedReward | None:
        """DPO's; none at another temperature than 1, where it is not what was trained."""
        settings = self._settings
        if settings.temperature != 1:
            return None
        return ImpliedReward(beta=settings.beta, loss=settings.loss)

    def _of_pairs(
        self, pairs_K2: Tensor, ratios_S: Tensor, tokens_S: Tensor, pairs: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each completion's part of the loss, slope of its tokens, and whether it is in a pair.

        Args:
            pairs_K2: of this process.
            ratios_S: log π_θ/π_ref.
            tokens_S: how many it is a sum of.
            pairs: over all processes.
        """
        scale_S = 1 / tokens_S if self._settings.loss == "ipo" else torch.ones_like(tokens_S)
        score_S = ratios_S * scale_S
        chosen_K, rejected_K = pairs_K2.unbind(1)
        with torch.enable_grad():
            delta_K = (score_S[chosen_K] - score_S[rejected_K]).requires_grad_()
            loss_K = pair_loss(delta_K, self._settings.loss, self._settings.beta) / max(pairs, 1.0)
            (slope_K,) = torch.autograd.grad(loss_K.sum(), delta_K)
        loss_K = loss_K.detach()

        def gather(of_chosen_K: Tensor, of_rejected_K: Tensor) -> Tensor:
            into_S = torch.zeros_like(score_S).index_add(0, chosen_K, of_chosen_K)
            return into_S.index_add(0, rejected_K, of_rejected_K)

        in_pair_S = gather(torch.ones_like(loss_K), torch.ones_like(loss_K)) > 0
        return gather(loss_K / 2, loss_K / 2), gather(slope_K, -slope_K) * scale_S, in_pair_S

    def _measure(
        self, batch: StepBatch, pairs_K2: Tensor, ratios_S: Tensor, reduce: Reduce
    ) -> dict[str, float]:
        """Metrics of the pairs, over all processes."""
        chosen_K, rejected_K = pairs_K2.unbind(1)
        implied_S = self._settings.beta * ratios_S
        margin_K = implied_S[chosen_K] - implied_S[rejected_K]
        lengths_S, rewards_S = batch.lengths_S, batch.rewards_S
        sums = {
            "pair_margin": (rewards_S[chosen_K] - rewards_S[rejected_K]).sum(),
            "pair_longer": (lengths_S[chosen_K] > lengths_S[rejected_K]).sum(),
            "accuracy": (margin_K > 0).sum(),
            "margin": margin_K.sum(),
            "chosen_reward": implied_S[chosen_K].sum(),
            "rejected_reward": implied_S[rejected_K].sum(),
        }
        paired, prompts = (set(of.tolist()) for of in (batch.groups_S[chosen_K], batch.groups_S))
        counts = [len(chosen_K), len(paired), len(prompts)]
        local = torch.tensor(
            [*counts, *(float(value) for value in sums.values())], dtype=torch.float64
        )
        pairs, with_pair, asked, *totals = reduce.sum(local).tolist()
        found = {"pairs": pairs, "paired": with_pair / max(asked, 1.0)}
        if pairs:
            found |= {name: total / pairs for name, total in zip(sums, totals, strict=True)}
        return found
