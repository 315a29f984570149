"""Speculative rejection: candidates are scored while they grow, and the weak ones stopped."""

from __future__ import annotations

from guerdon.gateway.strategies.best_of_n import unscored
from guerdon.gateway.strategies.choosing import best_first, kept
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Candidate, Ranking, RankingFailed


async def rejection(work: Work) -> Ranking:
    """The candidates that were let grow to their end, by score.

    Each round draws `chunk` tokens more of those that grow, scores them as far as they are, and
    keeps the best part. Those that have ended stay: a whole answer's score and a part's are not
    the same thing.
    """
    plan, most = work.plan, work.request.sampling.max_tokens
    found = await gather(work, work.draw(plan.best_of, max_tokens=min(plan.chunk, most)))
    ended: list[Candidate] = []
    left: list[Candidate] = []
    rounds = 1
    while True:
        left += unscored(found)
        growing = [each for each in work.check([*ended, *found]) if not each.draft.ended]
        ended += [each for each in found if each.scored and each.draft.ended]
        places = kept([each.value for each in growing], plan.keep, max(plan.n - len(ended), 0))
        left += [each for place, each in enumerate(growing) if place not in places]
        growing = [growing[place] for place in sorted(places)]
        if not growing:
            break
        room = most - max(each.draft.tokens for each in growing)
        more = work.go_on([each.draft for each in growing], min(plan.chunk, room))
        found = await gather(work, more)
        rounds += 1
    if len(ended) < plan.n:
        raise RankingFailed(f"{len(ended)} candidates have a score, and {plan.n} are asked for")
    order = best_first([each.value for each in ended])
    return Ranking(
        ranked=tuple(ended[i] for i in order),
        unranked=tuple(left),
        notes={"rounds": rounds, "rejected": sum(not each.draft.ended for each in left)},
    )
