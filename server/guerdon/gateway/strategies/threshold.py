"""Early stop: best of n, until a candidate reaches a score."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.gateway.strategies.best_of_n import by_score
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Candidate, Ranking


async def threshold(work: Work) -> Ranking:
    """The candidates that had come when one reached the threshold; what still ran was stopped."""
    plan = work.plan
    wanted = plan.threshold
    assert wanted is not None, "checked when it was asked for"

    def enough(found: Sequence[Candidate]) -> bool:
        scores = [each.value for each in found if each.scored]
        return len(scores) >= plan.n and max(scores) >= wanted

    return by_score(work, await gather(work, work.draw(plan.best_of), enough=enough))
