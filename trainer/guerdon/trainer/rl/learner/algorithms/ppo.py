"""Decoupled PPO with a value model.

    r_t = −β·log(π_prox/π_ref)_t + 1[last]·R        Â by GAE, whitened over the step
    L   = −E_μ[ π_prox/π_μ · min(ρÂ, clip(ρ)Â) ] + c_v·L_value,  ρ = π_θ/π_prox

Schulman et al. 2017, arXiv:1707.06347; Hilton et al. 2021, arXiv:2110.00641.
"""

from __future__ import annotations

from torch import Tensor

from guerdon.trainer.rl.learner.advantages import gae, token_rewards
from guerdon.trainer.rl.learner.algorithms.base import ValueModel
from guerdon.trainer.rl.learner.algorithms.policy_gradient import (
    Advantages,
    Clipped,
    PolicyGradient,
    Step,
)
from guerdon.trainer.rl.learner.losses import TokenLoss, value_loss
from guerdon.trainer.rl.settings import PPOSettings


class PPO(PolicyGradient):
    """The clipped loss with advantages by GAE, and a value model that learns the returns."""

    def __init__(self, settings: PPOSettings) -> None:
        super().__init__(settings, kl_in=settings.kl_in)
        self._settings = settings
        self.whiten = settings.whiten
        self.value_model = ValueModel(
            kind=settings.value,
            learning_rate=settings.value_learning_rate,
            max_grad_norm=settings.value_max_grad_norm,
            warmup=settings.value_warmup,
        )

    def advantages(self, step: Step) -> Advantages:
        """GAE over the token rewards; returns are taken before whitening."""
        assert step.values_N is not None
        rewards_N = token_rewards(step.rewards_S, step.lengths_S, step.mask_N, step.penalty_N)
        return Advantages(
            *gae(
                rewards_N,
                step.values_N,
                step.lengths_S,
                step.mask_N,
                gamma=self._settings.gamma,
                lam=self._settings.lam,
            )
        )

    def loss(
        self,
        tokens: Clipped,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> TokenLoss:
        """The clipped loss, and the value model's, which is alone while the policy waits."""
        assert values_M is not None
        assert tokens.old_values is not None
        assert tokens.returns is not None
        assert tokens.weights is not None
        policy = super().loss(tokens, logprobs_M, entropy_M)
        critic = value_loss(
            values_M,
            tokens.old_values,
            tokens.returns,
            tokens.weights,
            tokens.mask,
            clip=self._settings.clip_value,
        )
        scaled = self._settings.value_coef * critic.loss
        sums = policy.sums | critic.sums
        sums["value_loss"] = critic.loss.detach()
        sums["loss"] = policy.sums["loss"] + scaled.detach()
        loss = scaled if tokens.policy_waits else policy.loss + scaled
        return TokenLoss(loss, sums, policy.maxima)
