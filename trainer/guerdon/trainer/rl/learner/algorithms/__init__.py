"""One short module per algorithm, over the shared pure losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    OnlineSettings,
    PPOSettings,
    RLOOSettings,
)

if TYPE_CHECKING:
    from guerdon.trainer.rl.learner.algorithms.base import Algorithm


def build(settings: OnlineSettings) -> Algorithm:
    """The algorithm that settings ask for; a new one is entered here.

    Raises:
        ValueError: it is not one that a learner runs (RFT fine-tunes by TRL).
    """
    from guerdon.trainer.rl.learner.algorithms.grpo import GRPO
    from guerdon.trainer.rl.learner.algorithms.online_dpo import OnlineDPO
    from guerdon.trainer.rl.learner.algorithms.online_rft import OnlineRFT
    from guerdon.trainer.rl.learner.algorithms.ppo import PPO
    from guerdon.trainer.rl.learner.algorithms.rloo import RLOO

    algorithms: dict[type[OnlineSettings], Callable[[Any], Algorithm]] = {
        PPOSettings: PPO,
        GRPOSettings: GRPO,
        RLOOSettings: RLOO,
        OnlineRFTSettings: OnlineRFT,
        OnlineDPOSettings: OnlineDPO,
    }
    if type(settings) not in algorithms:
        raise ValueError(f"no learner for {type(settings).__name__}")
    return algorithms[type(settings)](settings)
