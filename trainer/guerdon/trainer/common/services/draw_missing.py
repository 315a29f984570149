"""Sampling and scoring what is not there yet, with its progress, for a person."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from rich.console import Console

from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import say
from guerdon.trainer.common.services.drawing import Drawing, Scores
from guerdon.trainer.common.services.scored_store import ScoredGroups
from guerdon.trainer.common.services.types import Group

LINES = 10
"""Lines over the whole sampling, where there is no terminal."""


async def draw_missing(
    drawing: Drawing,
    scored: ScoredGroups,
    rewards: Scores,
    console: Console,
    *,
    stream: int = 1,
    in_flight: int = 16,
    check: Callable[[Group], None] = lambda group: None,
) -> None:
    """Sample and score the groups that a store lacks: a bar on a terminal, some lines elsewhere.

    Args:
        drawing: that samples, by the weights published last.
        scored: gets each group as it comes.
        rewards: scores them.
        console: where; a quiet one shows nothing.
        stream: of seeds.
        in_flight: most prompts that are being sampled.
        check: refuses a group before it is stored.

    Raises:
        TrainingError: a service stayed away or refused.
    """
    total = len(scored) + len(scored.missing)
    means: list[float] = []
    scored.begin()
    with Bar(console, "sampling", total, len(scored)) as bar:

        def on_group(group: Group) -> None:
            check(group)
            scored.add(group)
            means.append(float(group.rewards_G.mean()))
            mean, done = f"mean reward {np.mean(means):+.3f}", len(scored)
            bar.move(done, mean)
            if bar.disable and (done % math.ceil(total / LINES) == 0 or done == total):
                say(console, f"sampled {done}/{total} prompts: {mean}")

        await drawing.sample(
            scored.missing,
            scored.samples_per_prompt,
            rewards=rewards,
            stream=stream,
            in_flight=in_flight,
            on_group=on_group,
        )
