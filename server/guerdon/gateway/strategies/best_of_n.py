"""Best of n: draw all, the highest score wins."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.gateway.strategies.choosing import best_first
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Candidate, Ranking


async def best_of_n(work: Work) -> Ranking:
    """All candidates by score; equal ones in the order of their numbers."""
    found = await gather(work, work.draw(work.plan.best_of))
    return by_score(work, found)


def by_score(work: Work, found: Sequence[Candidate]) -> Ranking:
    """A ranking by score alone.

    Raises:
        RankingFailed: rewards are away, or no candidate has a score.
    """
    scored = work.check(found)
    order = best_first([each.value for each in scored])
    return Ranking(ranked=tuple(scored[i] for i in order), unranked=unscored(found))


def unscored(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that have no score."""
    return tuple(each for each in found if not each.scored)
