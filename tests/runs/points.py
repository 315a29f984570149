"""Points of a run at which the trainer is killed by SIGKILL."""

from __future__ import annotations

import os
import signal
from typing import Any

from transformers import Trainer

from guerdon.trainer.common.services.publishing import Publisher
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.rl.checkpoint import Checkpoints
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.rollout.rollouts import Rollouts

POINTS: dict[str, tuple[type, str]] = {
    "sample": (GroupSampler, "sample"),
    "score": (RewardSource, "score"),
    "batch": (Rollouts, "next_batch"),
    "learn": (Learner, "step"),
    "publish": (Publisher, "publish"),
    "save": (Checkpoints, "save"),
    "rename": (os, "rename"),  # type: ignore[dict-item]
    "final": (RLFolder, "publish_final"),
    "checkpoint": (Trainer, "_save_checkpoint"),
}
"""What is called there. `before-NAME` is as it is called, `after-NAME` as it has ended."""


def set_up(plan: str) -> None:
    """End this process when a point is passed for the n-th time.

    Args:
        plan: `before-NAME:N` or `after-NAME:N`.
    """
    point, _, count = plan.partition(":")
    when, _, name = point.partition("-")
    owner, method = POINTS[name]
    original = getattr(owner, method)
    left = int(count)

    def passed(wanted: str) -> None:
        nonlocal left
        if wanted == when:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    def plain(*args: Any, **options: Any) -> Any:
        passed("before")
        result = original(*args, **options)
        passed("after")
        return result

    async def waiting(*args: Any, **options: Any) -> Any:
        passed("before")
        result = await original(*args, **options)
        passed("after")
        return result

    import inspect

    setattr(owner, method, waiting if inspect.iscoroutinefunction(original) else plain)
