"""Arguments that all trainers of TRL and transformers are given alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.processes import WAIT, use_gpu
from guerdon.trainer.common.trl.settings import FineTuneSettings


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
