"""GRPO: a completion is as good as it is better than its prompt's other completions.

    Â_t = (R − mean_group R) / std_group R        for every token of the completion
    L   = −E_μ[ π_prox/π_μ · min(ρÂ, clip(ρ)Â) ] + β·KL(π_θ ‖ π_ref)

Shao et al. 2024, arXiv:2402.03300. Without the division, and with `aggregation = constant`,
it is Dr. GRPO (Liu et al. 2025, arXiv:2503.20783). KL is k2, whose gradient is right, where
the paper has k3: see `losses.kl_loss`.
"""

from __future__ import annotations

from guerdon.trainer.rl.learner.advantages import group_advantages
from guerdon.trainer.rl.learner.algorithms.policy_gradient import Advantages, PolicyGradient, Step
from guerdon.trainer.rl.settings import GRPOSettings


class GRPO(PolicyGradient):
    """The clipped loss with advantages relative to the group."""

    def __init__(self, settings: GRPOSettings) -> None:
        super().__init__(settings)
        self._settings = settings

    def advantages(self, step: Step) -> Advantages:
        """A completion's advantage relative to its group, for each of its tokens."""
        advantages_S = group_advantages(
            step.rewards_S, step.groups_S, scale_by_std=self._settings.scale_by_std
        )
        return Advantages(advantages_S.repeat_interleave(step.lengths_S))
