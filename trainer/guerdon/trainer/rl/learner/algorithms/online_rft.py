"""Online RFT: supervised steps on accepted completions of the policy as it trains.

    ∇J = E[ 1[accepted] · Σ_t ∇ log π_θ ]           the gradient coefficient is 1 or 0

REINFORCE with rewards of 0 and 1, without a baseline, a ratio or a clip: Shao et al. 2024,
arXiv:2402.03300, sec. 5.2.1 and table 10. A completion is what it is however it was drawn, so
no weight π_prox/π_μ applies; how far the two are apart is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms.base import (
    LossParts,
    MicroBatch,
    Prepared,
    Reduce,
    StepBatch,
)
from guerdon.trainer.rl.learner.algorithms.measured import mask_of
from guerdon.trainer.rl.learner.losses import (
    entropy_bonus,
    nll_loss,
    off_policy_sums,
    token_weights,
)
from guerdon.trainer.rl.settings import OnlineRFTSettings


class OnlineRFT:
    """See the module, and `Algorithm`."""

    needs_values = False
    needs_reference = False
    needs_proximal = False
    needs_entropy = False
    epochs = 1
    minibatches = 1

    def __init__(self, settings: OnlineRFTSettings) -> None:
        self._settings = settings

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Prepared:
        """Masks what was not kept."""
        mask_N = mask_of(batch)
        metrics = {}
        if batch.kept_S is not None:
            mask_N = mask_N & batch.kept_S.repeat_interleave(batch.lengths_S)
            counts = torch.tensor([batch.kept_S.sum(), len(batch.kept_S)], dtype=torch.float64)
            kept, samples = reduce.sum(counts).tolist()
            metrics["accepted"] = kept / max(samples, 1.0)
        return Prepared(
            mask_N=mask_N,
            behaviour_N=batch.behaviour_N,
            proximal_N=batch.proximal_N,
            advantages_N=mask_N.to(batch.behaviour_N.dtype),
            metrics=metrics,
        )

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """The mean over all kept tokens."""
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
        micro: MicroBatch,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> LossParts:
        """Negative log-likelihood of the kept tokens."""
        likelihood = nll_loss(logprobs_M, micro.weights_M, micro.mask_M)
        apart, largest = off_policy_sums(
            logprobs_M.detach(), micro.behaviour_M, micro.mask_M, cap=float("inf")
        )
        loss = likelihood.loss.detach()
        sums = likelihood.sums | {"loss": loss, "policy_loss": loss}
        sums |= {"mismatch_kl": apart["k3"], "weight": apart["weight"]}
        if entropy_M is not None:
            sums |= entropy_bonus(entropy_M.detach(), micro.weights_M, micro.mask_M).sums
        return LossParts(likelihood.loss, None, sums, {"weight_max": largest})

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take."""
