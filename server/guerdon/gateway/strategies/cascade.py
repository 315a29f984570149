"""A cascade: a small reward model decides clear cases, the large one close calls."""

from __future__ import annotations

from guerdon.gateway.strategies.best_of_n import unscored
from guerdon.gateway.strategies.choosing import best_first, close_calls
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Candidate, Ranking
from guerdon.together import together


async def cascade(work: Work) -> Ranking:
    """Close calls first, by the large model's scores; then the others, by the small one's.

    Raises:
        RankingFailed: rewards are away, or no candidate, or no close call, has a score.
    """
    plan = work.plan
    found = await gather(work, work.draw(plan.best_of), model=plan.small_model)
    scored = work.check(found)
    values = [each.value for each in scored]
    close = close_calls(values, plan.margin)  # best first
    clear = [scored[i] for i in best_first(values) if i not in close]
    if len(close) == 1:
        ranked = (scored[close[0]], *clear)
        return Ranking(ranked=ranked, unranked=unscored(found), notes={"close_calls": 0})
    judged: list[Candidate] = await together([work.score(scored[i].draft) for i in close])
    able = sorted(work.check(judged), key=judged.index)  # so that the small model decides ties
    order = best_first([each.value for each in able])
    return Ranking(
        ranked=(*(able[i] for i in order), *clear),
        unranked=(*unscored(found), *unscored(judged)),
        notes={"close_calls": len(close), "overruled": order[0] != 0},
    )
