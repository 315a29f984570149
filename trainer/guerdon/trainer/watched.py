"""What every trainer of TRL's gets from us: a loss that is watched, and no words to anyone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guerdon.trainer.errors import DivergedError


class Watched:
    """Put before one of TRL's trainers in a class's bases."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        ours: Any = super()
        loss: Tensor = ours.training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            state: Any = self.state  # type: ignore[attr-defined]
            raise DivergedError(
                f"the loss is {loss.item()} at step {state.global_step + 1}: "
                "try a smaller --lr, or --dtype float32"
            )
        return loss

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for checkpoints: they are for resuming only."""
