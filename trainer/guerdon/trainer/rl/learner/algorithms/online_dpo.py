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
from typing import Any

import torch
from torch import Tensor

from guerdon.trainer.rl.learner.advantages import require_finite
from guerdon.trainer.rl.learner.algorithms.base import (
    LossParts,
    MicroBatch,
    Prepared,
    Reduce,
    StepBatch,
)
from guerdon.trainer.rl.learner.algorithms.measured import check, divergence, mask_of, off_policy
from guerdon.trainer.rl.learner.losses import entropy_bonus, linear_loss, pair_loss, segment_sum
from guerdon.trainer.rl.settings import OnlineDPOSettings


class OnlineDPO:
    """See the module, and `Algorithm`."""

    needs_values = False
    needs_reference = True
    needs_proximal = True
    needs_entropy = False
    epochs = 1
    minibatches = 1

    def __init__(self, settings: OnlineDPOSettings) -> None:
        self._settings = settings

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Prepared:
        """The pairs' losses, and the slopes of the tokens of their completions."""
        mask_N = mask_of(batch)
        check(batch, mask_N, self)
        require_finite("reward", batch.rewards_S)
        assert batch.reference_N is not None
        assert batch.pairs_K2 is not None
        ratio_N = (batch.proximal_N.double() - batch.reference_N.double()).where(mask_N, 0.0)
        ratios_S = segment_sum(ratio_N, batch.lengths_S)
        tokens_S = segment_sum(mask_N.double(), batch.lengths_S).clamp(min=1.0)
        pairs = reduce.sum(torch.tensor([len(batch.pairs_K2)], dtype=torch.float64)).item()
        losses_S, slopes_S, in_pair_S = self._of_pairs(batch.pairs_K2, ratios_S, tokens_S, pairs)
        metrics = off_policy(batch, mask_N, math.inf, reduce)
        del metrics["capped_fraction"]  # no weight is used, so none is capped
        metrics |= divergence(batch, batch.reference_N, mask_N, reduce)[0]
        metrics |= self._measure(batch, ratios_S, reduce)

        def spread(values_S: Tensor) -> Tensor:
            return values_S.repeat_interleave(batch.lengths_S).to(batch.proximal_N.dtype)

        return Prepared(
            mask_N=mask_N & in_pair_S.repeat_interleave(batch.lengths_S),
            behaviour_N=batch.behaviour_N,
            proximal_N=batch.proximal_N,
            advantages_N=-spread(slopes_S),
            losses_N=spread(losses_S / tokens_S),
            metrics=metrics,
        )

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """1: the mean over the step's pairs is in the slopes, for there is one update."""
        return mask_N.to(torch.float32)

    def loss(
        self,
        micro: MicroBatch,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> LossParts:
        """The tokens' share of the pairs' loss."""
        assert micro.losses_M is not None
        found = linear_loss(
            logprobs_M,
            micro.proximal_M,
            -micro.advantages_M,
            micro.losses_M,
            micro.weights_M,
            micro.mask_M,
        )
        loss = found.loss.detach()
        sums = found.sums | {"loss": loss, "policy_loss": loss}
        if entropy_M is not None:
            sums |= entropy_bonus(entropy_M.detach(), micro.weights_M, micro.mask_M).sums
        return LossParts(found.loss, None, sums, {})

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def _of_pairs(
        self, pairs_K2: Tensor, ratios_S: Tensor, tokens_S: Tensor, pairs: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each completion: its part of the loss, the slope of its tokens, if it is in a pair.

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

    def _measure(self, batch: StepBatch, ratios_S: Tensor, reduce: Reduce) -> dict[str, float]:
        """What the pairs say, over all processes."""
        assert batch.pairs_K2 is not None
        chosen_K, rejected_K = batch.pairs_K2.unbind(1)
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
        local = torch.tensor([*counts, *(float(value) for value in sums.values())]).double()
        pairs, with_pair, asked, *totals = reduce.sum(local).tolist()
        found = {"pairs": pairs, "paired": with_pair / max(asked, 1.0)}
        if pairs:
            found |= {name: total / pairs for name, total in zip(sums, totals, strict=True)}
        return found
