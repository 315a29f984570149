"""Reads the tokenizer and data that settings name, checked, into a task."""

from __future__ import annotations

from typing import Any

from guerdon.trainer.reward.inputs import read_inputs
from guerdon.trainer.reward.objectives.task import RewardTask
from guerdon.trainer.reward.settings import (
    AttributeSettings,
    ProcessSettings,
    RewardModelSettings,
    RewardSettings,
)


def read_task(settings: RewardModelSettings) -> RewardTask[Any]:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Raises:
        TrainingError: something is; says what.
    """
    if isinstance(settings, AttributeSettings):
        from guerdon.trainer.reward.objectives.attributes import read_attributes

        return read_attributes(settings)
    if isinstance(settings, ProcessSettings):
        from guerdon.trainer.reward.objectives.process import read_process

        return read_process(settings)
    from guerdon.trainer.reward.objectives.preference import PreferenceTask

    assert isinstance(settings, RewardSettings)
    return PreferenceTask(read_inputs(settings))
