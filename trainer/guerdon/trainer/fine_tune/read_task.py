"""Reads the policy, tokenizer and data that settings name, checked, into a task."""

from __future__ import annotations

from typing import Any

from guerdon.trainer.fine_tune.dpo import DPOTask
from guerdon.trainer.fine_tune.inputs import demonstrations, pairs, read_inputs
from guerdon.trainer.fine_tune.orpo import ORPOTask
from guerdon.trainer.fine_tune.settings import PolicySettings
from guerdon.trainer.fine_tune.sft import SFTTask
from guerdon.trainer.fine_tune.task import PolicyTask

_TASKS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTask, demonstrations),
    "dpo": (DPOTask, pairs),
    "orpo": (ORPOTask, pairs),
}


def read_task(settings: PolicySettings) -> PolicyTask[Any]:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Raises:
        TrainingError: something is; says what.
    """
    task, read = _TASKS[settings.algorithm]
    found: PolicyTask[Any] = task(read_inputs(settings, read))
    return found
