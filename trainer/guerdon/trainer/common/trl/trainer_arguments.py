"""What reward models, SFT, DPO and ORPO do alike around TRL's trainers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.processes import ALONE, WAIT, Processes, use_gpu
from guerdon.trainer.common.trl.settings import FineTuneSettings


@dataclass
class Phases:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase, also one that an error ends."""
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)


def check_shares(settings: FineTuneSettings, processes: Processes) -> None:
    """Refuse a batch that the processes can't share, and GPUs that nobody would use.

    Raises:
        SettingsError: the batch does not divide.
        TrainingError: there are more GPUs than the one process takes.
    """
    if settings.batch_size % processes.count:
        raise SettingsError(
            f"batch_size is {settings.batch_size}, which {processes.count} processes can't share "
            "evenly"
        )
    if processes.count == 1 and torch.cuda.device_count() > 1:
        raise TrainingError(
            "several GPUs are visible: start one process for each by accelerate launch or "
            "torchrun, or set CUDA_VISIBLE_DEVICES=0"
        )


def trainer_arguments(
    settings: FineTuneSettings, checkpoints: Path, processes: Processes = ALONE
) -> dict[str, Any]:
    """What every config of TRL's is told: optimiser, order, checkpoints, and to be silent."""
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size // processes.count,
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


def round_weights(model: Any, dtype: str) -> None:
    """Round the weights to what will be saved, so that the saved model is what is measured."""
    if dtype == "bfloat16":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))


def in_dtype(model: Any, dtype: str) -> Any:
    """The model as it is saved."""
    return model.to(torch.bfloat16) if dtype == "bfloat16" else model


def versions() -> dict[str, str]:
    """Of the packages that training depends on."""
    return {name: version(name) for name in ("guerdon", "torch", "transformers", "trl", "peft")}
