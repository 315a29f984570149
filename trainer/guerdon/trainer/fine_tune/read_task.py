"""Reads the policy, tokenizer and data that settings name, checked, into a task."""

from __future__ import annotations

from typing import Any

from guerdon.trainer.fine_tune.inputs import demonstrations, pairs, read_inputs
from guerdon.trainer.fine_tune.settings import DPOSettings, PolicySettings, SFTSettings
from guerdon.trainer.fine_tune.task import PolicyTask


def read_task(settings: PolicySettings) -> PolicyTask[Any]:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Raises:
        TrainingError: something is; says what.
    """
    if isinstance(settings, SFTSettings):
        from guerdon.trainer.fine_tune.sft import SFTTask

        return SFTTask(read_inputs(settings, demonstrations))
    inputs = read_inputs(settings, pairs)
    if isinstance(settings, DPOSettings):
        from guerdon.trainer.fine_tune.dpo import DPOTask

        return DPOTask(inputs)
    from guerdon.trainer.fine_tune.orpo import ORPOTask

    return ORPOTask(inputs)
