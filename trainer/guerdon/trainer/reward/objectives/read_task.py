"""Reads the tokenizer and data that settings name, checked, into a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guerdon.trainer.reward.inputs import read_pairs
from guerdon.trainer.reward.objectives.attributes import read_attributes
from guerdon.trainer.reward.objectives.preference import PreferenceTask
from guerdon.trainer.reward.objectives.process import read_process
from guerdon.trainer.reward.objectives.task import RewardTask
from guerdon.trainer.reward.settings import RewardModelSettings

_READERS: dict[str, Callable[[Any], RewardTask[Any]]] = {
    "preference": lambda settings: PreferenceTask(read_pairs(settings)),
    "attributes": read_attributes,
    "process": read_process,
}


def read_task(settings: RewardModelSettings) -> RewardTask[Any]:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Raises:
        TrainingError: something is; says what.
    """
    return _READERS[settings.objective](settings)
