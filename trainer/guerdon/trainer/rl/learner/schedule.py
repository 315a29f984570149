"""The learning rates over a run."""

from __future__ import annotations

import math

from guerdon.trainer.rl.settings import PPOSettings, RunSettings


def learning_rates(settings: RunSettings, step: int) -> list[float]:
    """Of an update, the first being 0: the policy's rate, and with PPO the value model's.

    While the value model learns alone (`value_warmup`) the policy's rate is 0, and its own
    schedule, warm-up included, begins when it may move.
    """
    if not isinstance(settings, PPOSettings):
        return [settings.learning_rate * _factor(settings, step, settings.steps)]
    waits = settings.value_warmup
    own = _factor(settings, step - waits, settings.steps - waits) if step >= waits else 0.0
    return [
        settings.learning_rate * own,
        settings.value_learning_rate * _factor(settings, step, settings.steps),
    ]


def _factor(settings: RunSettings, step: int, steps: int) -> float:
    """Of the peak rate, at one of so many steps; the first is 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.lr_schedule == "linear":
        return max(0.0, 1 - done)
    if settings.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
