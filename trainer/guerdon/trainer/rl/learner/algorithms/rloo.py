"""RLOO: REINFORCE whose baseline is the mean of the prompt's other completions.

    R̃   = R − β·Σ_t log(π_prox/π_ref)_t           KL of the whole completion in its reward
    Â_t = R̃ − mean of the others' R̃               for every token of the completion
    L   = −E_μ[ π_prox/π_μ · min(ρÂ, clip(ρ)Â) ]

Ahmadian et al. 2024, arXiv:2402.14740. On the first update ρ = 1 and this is REINFORCE.
"""

from __future__ import annotations

import torch

from guerdon.trainer.rl.learner.advantages import leave_one_out
from guerdon.trainer.rl.learner.algorithms.policy_gradient import Advantages, PolicyGradient, Step
from guerdon.trainer.rl.learner.losses import segment_sum
from guerdon.trainer.rl.settings import RLOOSettings


class RLOO(PolicyGradient):
    """The clipped loss with advantages over the mean of the others."""

    def __init__(self, settings: RLOOSettings) -> None:
        super().__init__(settings, kl_in=settings.kl_in)

    def advantages(self, step: Step) -> Advantages:
        """A completion's advantage over the others, for each of its tokens."""
        rewards_S = step.rewards_S
        if step.penalty_N is not None:
            penalty_N = torch.where(step.mask_N, step.penalty_N, 0.0)
            rewards_S = rewards_S - segment_sum(penalty_N, step.lengths_S)
        advantages_S = leave_one_out(rewards_S, step.groups_S)
        return Advantages(advantages_S.repeat_interleave(step.lengths_S))
