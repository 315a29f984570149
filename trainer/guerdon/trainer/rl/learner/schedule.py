"""The learning rates over a run."""

from __future__ import annotations

import math

from guerdon.trainer.rl.learner.algorithms.base import ValueModel
from guerdon.trainer.rl.settings import RunSettings


def learning_rates(settings: RunSettings, value: ValueModel | None, step: int) -> list[float]:
    """The learning rates of an update: the policy's and, where there is one, the value model's.

    While the value model learns alone the policy's rate is 0, and its own schedule, warm-up
    included, begins when it may move.

    Args:
        settings: of the run.
        value: the value model.
        step: the update; the first is 0.
    """
    waits = value.warmup if value else 0
    own = _factor(settings, step - waits, settings.steps - waits) if step >= waits else 0.0
    rates = [settings.learning_rate * own]
    if value:
        rates.append(value.learning_rate * _factor(settings, step, settings.steps))
    return rates


def _factor(settings: RunSettings, step: int, steps: int) -> float:
    """The share of the peak rate at one of so many steps; the first is 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.lr_schedule == "linear":
        return max(0.0, 1 - done)
    if settings.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
