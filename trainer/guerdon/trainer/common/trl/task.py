"""What a way of fine-tuning gives to the recipe that all share, and what all tell the trainer."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.processes import WAIT, use_gpu
from guerdon.trainer.common.trl.folder import FineTuneFolder
from guerdon.trainer.common.trl.settings import FineTuneSettings

Measured = TypeVar("Measured")
"""What a model makes of the held-out rows: scores, predictions or likelihoods."""
Folder = TypeVar("Folder", bound=FineTuneFolder)


@dataclass
class TrainingOutcome(Generic[Measured]):
    """A trained model, and how it came about."""

    model: Any
    """The model without LoRA, its weights rounded to what is saved."""
    before: Measured | None
    """The held-out rows by the model that training began from; None where nothing was measured."""
    after: Measured
    """The held-out rows by the trained model."""
    rows: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    steps: int
    """Steps of the optimiser."""
    train_seconds: float
    """Time in training, earlier parts of a resumed run included."""


class FineTuneTask(abc.ABC, Generic[Measured, Folder]):
    """A way of fine-tuning with its data, checked; nothing is computed when it is made."""

    settings: FineTuneSettings
    eval_before: bool = True
    """Whether the model is measured before training too."""
    processes: ProcessGroup = SINGLE_PROCESS
    """The run's: all load the model, and each trains on and measures a part."""
    console: Console = Console(quiet=True)
    """The terminal on which a person sees how measuring goes on."""

    # Data

    @property
    @abc.abstractmethod
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the training and the held-out data, by their sources."""

    @abc.abstractmethod
    def show_counts(self, console: Console) -> None:
        """Say how much data there is, and what is odd about it."""

    def show_memory(self, console: Console) -> None:
        """Say how much memory one process will need."""

    # Training

    @abc.abstractmethod
    def load(self) -> Any:
        """The model in float32, ready to be trained, on its device.

        Raises:
            TrainingError: it can't be loaded.
        """

    def settle(self) -> None:
        """Agree with the other processes on what each found out in `load`; all of them call it."""

    @abc.abstractmethod
    def make_trainer(self, model: Any, checkpoints: Path, callbacks: Sequence[Any]) -> Any:
        """A trainer of `transformers` or TRL; the model may be wrapped by it."""

    def take_up(self, folder: Folder) -> dict[str, float]:
        """Read what an earlier part of the run left beside checkpoints; its seconds by phase."""
        return {}

    def save_progress(self, folder: Folder) -> None:
        """Write what a resumed run takes up, just before training."""

    # Measuring

    @abc.abstractmethod
    def measure(self, model: Any, dtype: str) -> Measured:
        """What the model makes of the held-out rows.

        Raises:
            DivergedError: a number is not finite.
        """

    def measure_before(self, model: Any) -> Measured:
        """What the model makes of the held-out rows before training."""
        return self.measure(model, self.settings.dtype)

    def measure_after(self, model: Any) -> Measured:
        """What the trained model, as it is saved, makes of the held-out rows."""
        return self.measure(model, self.settings.saved_dtype)

    def measure_more(self, model: Any, seconds: dict[str, float]) -> None:
        """Measure what else the result needs, in phases of its own, whose seconds are added."""

    @abc.abstractmethod
    def describe_measures(self, found: Measured) -> str:
        """What was measured, for a person, in a few words."""

    @abc.abstractmethod
    def logged(self, found: Measured) -> dict[str, float]:
        """The numbers of an evaluation in the middle, by their names in metrics.jsonl."""

    # The result

    @abc.abstractmethod
    def summary(self, outcome: TrainingOutcome[Measured]) -> dict[str, Any]:
        """What goes into summary.json but for seconds, which go on, and packages' versions."""

    @abc.abstractmethod
    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: Measured) -> None:
        """Draw what was logged, and what the trained model makes of the held-out rows.

        Args:
            folder: for the pictures; made if it is not there.
            rows: of metrics.jsonl.
            found: what `measure_after` gave.
        """

    @abc.abstractmethod
    def save(
        self,
        folder: Folder,
        outcome: TrainingOutcome[Measured],
        summary: dict[str, Any],
        seconds: dict[str, float],
    ) -> None:
        """Write the model, in the type that is saved, and the summary, which gets the seconds.

        Raises:
            OutputError: the system refuses.
        """


def trainer_arguments(
    settings: FineTuneSettings, checkpoints: Path, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """What every config of TRL's is told: optimiser, order, checkpoints, and to be silent."""
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size // processes.world_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if settings.checkpoint_every else "no",
        "save_steps": settings.checkpoint_every or 1,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not use_gpu(),
        "dataloader_pin_memory": use_gpu(),
        "ddp_find_unused_parameters": False,
        "ddp_timeout": int(WAIT.total_seconds()),
    }
