"""The learning rate over a run."""

from __future__ import annotations

import math

from guerdon.trainer.rl.settings import RunSettings


def lr_factor(settings: RunSettings, step: int) -> float:
    """Of the peak rate, at an update of the policy; the first is 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    if settings.lr_schedule == "linear":
        return max(0.0, 1 - done)
    if settings.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
