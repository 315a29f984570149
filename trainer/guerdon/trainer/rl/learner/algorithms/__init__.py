"""One short module per algorithm, over the shared pure losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    PPOSettings,
    RLOOSettings,
    RunSettings,
)

if TYPE_CHECKING:
    from guerdon.trainer.rl.learner.algorithms.base import Algorithm


def build(settings: RunSettings) -> Algorithm:
    """The algorithm that settings ask for.

    Raises:
        ValueError: it is not one that a learner runs (RFT fine-tunes by TRL).
    """
    from guerdon.trainer.rl.learner.algorithms.grpo import GRPO
    from guerdon.trainer.rl.learner.algorithms.online_dpo import OnlineDPO
    from guerdon.trainer.rl.learner.algorithms.online_rft import OnlineRFT
    from guerdon.trainer.rl.learner.algorithms.ppo import PPO
    from guerdon.trainer.rl.learner.algorithms.rloo import RLOO

    match settings:
        case PPOSettings():
            return PPO(settings)
        case GRPOSettings():
            return GRPO(settings)
        case RLOOSettings():
            return RLOO(settings)
        case OnlineRFTSettings():
            return OnlineRFT(settings)
        case OnlineDPOSettings():
            return OnlineDPO(settings)
    raise ValueError(f"no learner for {type(settings).__name__}")
