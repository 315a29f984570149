"""What a batch may hold. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may hold, and how the engine is shared.

    Args:
        max_batch_tokens: most tokens in a batch, shared prompts counted once for each part.
        max_batch_sequences: most responses in a batch.
        batch_share: part of the tokens that the class BATCH gets while both classes wait.
        patience: seconds after which work without a nearer deadline is due.
    """

    max_batch_tokens: int = 8192
    max_batch_sequences: int = 512
    batch_share: float = 0.2
    patience: float = 5.0

    def __post_init__(self) -> None:
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, not {self.max_batch_tokens}")
        if self.max_batch_sequences < 1:
            raise ValueError(
                f"max_batch_sequences must be at least 1, not {self.max_batch_sequences}"
            )
        if not 0 <= self.batch_share < 1:
            raise ValueError(f"batch_share must be in [0, 1), not {self.batch_share}")
        if not 0 < self.patience < math.inf:
            raise ValueError(f"patience must be positive and finite, not {self.patience}")

    def due(self, deadline: float | None, arrival: float) -> float:
        """When work should be done: what its class is ordered by."""
        soon = arrival + self.patience
        return soon if deadline is None else min(deadline, soon)
