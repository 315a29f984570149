"""β, the weight of KL(π_θ ‖ π_ref): fixed, or moved towards a target.

Adaptive: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class KLWeight:
    """β, which stays as it is set.

    Attributes:
        value: β of the step that comes.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, kl: float, samples: int) -> None:
        """Learn from a step.

        Args:
            kl: mean divergence of its completions, in nats.
            samples: how many there were, over all processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """What changes: nothing, β is a setting."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""


class AdaptiveKL(KLWeight):
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·samples/horizon).

    Args:
        value: the first β.
        target: nats per completion.
        horizon: completions over which β moves; a step that is longer counts as this long.
    """

    def __init__(self, value: float, *, target: float, horizon: float) -> None:
        super().__init__(value)
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Raise β where the divergence is over the target, lower it where it is under.

        Raises:
            ValueError: the divergence is not a finite number.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the divergence from the reference is {kl}")
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * min(samples / self._horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """β as it is now."""
        return {"kl_coef": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.value = float(state["kl_coef"])
