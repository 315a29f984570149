"""Adaptive n: draw in waves while another candidate promises to be better, within a budget."""

from __future__ import annotations

import time

from guerdon.gateway.strategies.best_of_n import by_score
from guerdon.gateway.strategies.choosing import expected_gain
from guerdon.gateway.strategies.work import Work, gather
from guerdon.gateway.types import Candidate, Ranking
from guerdon.serving.errors import InvalidRequest

WAVE = 4
"""Candidates that are drawn side by side: fewer are slower, more overshoot."""


async def adaptive(work: Work) -> Ranking:
    """All candidates of all waves, by score; `stopped_by` says what ended the last one."""
    plan = work.plan
    until = None if plan.seconds is None else time.monotonic() + plan.seconds
    found: list[Candidate] = []
    while True:
        size = min(max(WAVE, plan.n), plan.best_of - work.begun, affordable(work))
        if not found and size < plan.n:
            raise InvalidRequest(
                "guerdon.token_budget",
                f"is {plan.token_budget}: {plan.n} candidates of up to "
                f"{work.request.sampling.max_tokens} tokens may take more",
            )
        if size == 0:
            by = "best_of" if work.begun == plan.best_of else "token_budget"
            break
        found += await gather(work, work.draw(size), until=until)
        scores = [each.value for each in work.check(found)]
        if until is not None and time.monotonic() >= until:
            by = "seconds"
            break
        if len(scores) >= plan.n and expected_gain(scores) < plan.min_gain:
            by = "min_gain"
            break
    ranking = by_score(work, found)
    return Ranking(ranked=ranking.ranked, unranked=ranking.unranked, notes={"stopped_by": by})


def affordable(work: Work) -> int:
    """How many candidates can be begun so that the token budget holds, whatever is drawn."""
    plan = work.plan
    if plan.token_budget is None:
        return plan.best_of
    return max(0, plan.token_budget - work.drawn) // work.request.sampling.max_tokens
