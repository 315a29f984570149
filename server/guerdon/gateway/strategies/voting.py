"""Weighted majority: the final answer whose candidates have most reward together."""

from __future__ import annotations

from guerdon.gateway.strategies.best_of_n import unscored
from guerdon.gateway.strategies.choosing import by_vote, vote, vote_weight
from guerdon.gateway.strategies.final_answers import final_answer
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Ranking
from guerdon.serving.errors import Unsupported


async def voting(work: Work) -> Ranking:
    """Candidates by the weight of their final answer, and by score among those that agree.

    Raises:
        Unsupported: a score can't be a weight.
    """
    plan = work.plan
    found = await gather(work, work.draw(plan.best_of))
    scored = work.check(found)
    scores = [each.value for each in scored]
    answers = [final_answer(each.draft.text, plan.answer) for each in scored]
    try:
        votes = vote(answers, [vote_weight(score, plan.weight) for score in scores])
    except ValueError as error:
        raise Unsupported(f"a score of {plan.model} {error}") from error
    return Ranking(
        ranked=tuple(scored[i] for i in by_vote(answers, scores, votes)),
        unranked=unscored(found),
        notes={
            "votes": [{"answer": str(answer), "weight": sum_} for answer, sum_ in votes.items()],
            "without_answer": answers.count(None),
        },
    )
