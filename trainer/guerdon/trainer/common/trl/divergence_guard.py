"""A guard against losses that are no number, for all trainers of TRL; nothing is reported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup


class DivergenceGuard:
    """Put before one of TRL's trainers in a class's bases."""

    processes: ProcessGroup = SINGLE_PROCESS
    """The processes of the run."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        ours: Any = super()
        loss: Tensor = ours.training_step(*args, **kwargs)
        # Where one process has such a loss, all of them end, and none waits for it.
        if self.processes.any_rank(not torch.isfinite(loss)):
            state: Any = self.state  # type: ignore[attr-defined]
            raise DivergedError(
                f"the loss is not a finite number at step {state.global_step + 1}: "
                "try a smaller --lr, or --dtype float32"
            )
        return loss

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for checkpoints: they are for resuming only."""
