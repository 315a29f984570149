"""Soft best of n: the answer is drawn among the candidates, by the softmax of their scores."""

from __future__ import annotations

import random

from guerdon.gateway.strategies.best_of_n import unscored
from guerdon.gateway.strategies.choosing import softly_first, softmax
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Ranking


async def soft(work: Work) -> Ranking:
    """Candidates in the order in which they were drawn; a seed makes it repeatable."""
    plan, seed = work.plan, work.request.sampling.seed
    found = await gather(work, work.draw(plan.best_of))
    scored = work.check(found)
    scores = [each.value for each in scored]
    chance = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
    order = softly_first(scores, plan.temperature, chance)
    return Ranking(
        ranked=tuple(scored[i] for i in order),
        unranked=unscored(found),
        notes={"probability": softmax(scores, plan.temperature)[order[0]]},
    )
