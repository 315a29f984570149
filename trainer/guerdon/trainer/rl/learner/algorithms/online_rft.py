"""Online RFT: supervised steps on accepted completions of the policy as it trains.

    ∇J = E[ 1[accepted] · Σ_t ∇ log π_θ ]           the gradient coefficient is 1 or 0

REINFORCE with rewards of 0 and 1, without a baseline, a ratio or a clip: Shao et al. 2024,
arXiv:2402.03300, sec. 5.2.1 and table 10. A completion is what it is however it was drawn, so
no weight π_prox/π_μ applies; how far the two are apart is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms.base import Algorithm, Prepared, Reduce, StepBatch
from guerdon.trainer.rl.learner.algorithms.measured import regrouped, token_mask
from guerdon.trainer.rl.learner.losses import (
    TokenLoss,
    entropy_bonus,
    nll_loss,
    off_policy_sums,
    token_weights,
)
from guerdon.trainer.rl.learner.rejection import keep
from guerdon.trainer.rl.settings import OnlineRFTSettings


@dataclass(frozen=True, kw_only=True)
class Accepted(Prepared):
    """What the likelihood of accepted completions needs of each token."""

    behaviour: Tensor


class OnlineRFT(Algorithm):
    """The likelihood of the completions that a rule accepts."""

    needs_proximal = False

    def __init__(self, settings: OnlineRFTSettings) -> None:
        self._settings = settings

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Accepted:
        """Masks what was not accepted."""
        kept_S = self.accepted(batch)
        mask_N = token_mask(batch) & kept_S.repeat_interleave(batch.lengths_S)
        counts = torch.tensor([kept_S.sum(), len(kept_S)], dtype=torch.float64)
        kept, samples = reduce.sum(counts).tolist()
        return Accepted(
            mask=mask_N,
            learnable=mask_N,
            behaviour=batch.behaviour_N,
            metrics={"accepted": kept / max(samples, 1.0)},
        )

    def accepted(self, batch: StepBatch) -> Tensor:
        """Whether each sample is trained on, bool [S]: by the rule of the settings."""
        kept: set[int] = set()
        for place, group in regrouped(batch).items():
            rng = np.random.default_rng([self._settings.seed, batch.step, place])
            kept |= {id(sample) for sample in keep([group], self._settings, rng)}
        return torch.tensor([id(sample) in kept for sample in batch.samples], dtype=torch.bool)

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """One over the number of accepted tokens, for their mean."""
        n_tokens = reduce.sum(mask_N.sum().to(torch.float64).reshape(1)).item()
        weights_N = token_weights(
            lengths_S,
            mask_N,
            "token",
            n_samples=len(lengths_S),
            n_tokens=n_tokens,
            max_tokens=self._settings.max_tokens,
        )
        return weights_N.to(torch.float32)

    def loss(
        self,
        tokens: Accepted,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> TokenLoss:
        """Negative log-likelihood of the accepted tokens."""
        assert tokens.weights is not None
        likelihood = nll_loss(logprobs_M, tokens.weights, tokens.mask)
        apart, largest = off_policy_sums(
            logprobs_M.detach(), tokens.behaviour, tokens.mask, cap=float("inf")
        )
        loss = likelihood.loss.detach()
        sums = likelihood.sums | {"loss": loss, "policy_loss": loss}
        sums |= {"mismatch_kl": apart["k3"], "weight": apart["weight"]}
        if entropy_M is not None:
            sums |= entropy_bonus(entropy_M.detach(), tokens.weights, tokens.mask).sums
        return TokenLoss(likelihood.loss, sums, {"weight_max": largest})

    def warning(self, row: Mapping[str, float]) -> str:
        """Says so where a step accepted no completion."""
        if row["accepted"] > 0:
            return ""
        return (
            "a step accepted no completion, and so learned nothing: is --threshold too high, or "
            "--max-tokens too small?"
        )
