"""Answers one call: reserve its tokens, find the best answer, or say why there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.gateway.spending import Spending
from guerdon.gateway.strategies.registry import STRATEGIES, reward_models
from guerdon.gateway.strategies.work import Work
from guerdon.gateway.types import (
    RANKS_ONLY,
    Candidate,
    Draft,
    Drawer,
    Plan,
    PolicyRequest,
    RankedChoices,
    Ranking,
    RankingFailed,
    Score,
    Scorer,
    Seconds,
    Stopped,
    Unscored,
)
from guerdon.serving.calls import Call
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, ServiceError
from guerdon.together import together

_NOT_SCORED = Unscored("was not scored: it was not needed")


class Answering:
    """Finds the best answers.

    Args:
        unranked: what happens when no ranking is to be had.
        max_seconds: longest time of a call.
    """

    def __init__(
        self,
        drawer: Drawer,
        scorer: Scorer,
        spending: Spending,
        metrics: GatewayMetrics,
        *,
        unranked: Literal["refuse", "first"],
        max_seconds: float,
    ) -> None:
        self._drawer = drawer
        self._scorer = scorer
        self._spending = spending
        self._metrics = metrics
        self._unranked = unranked
        self._max_seconds = max_seconds

    async def answer(
        self,
        call: Call,
        request: PolicyRequest,
        plan: Plan,
        on_progress: Callable[[Work], None] = lambda work: None,
    ) -> RankedChoices:
        """The best answers; whatever ends this early stops what is drawn and scored for it.

        Args:
            call: its caller and deadline.
            request: what is asked.
            plan: how the best answer is found.
            on_progress: called when a candidate was drawn or scored.

        Raises:
            RankingFailed: no ranking is to be had, and the settings refuse then.
            DeadlinePassed: the deadline came before the answer.
            Overloaded: the caller has spent its tokens.
            InvalidRequest: a reward model has no score for one answer.
            ServiceError: the policy can't or won't.
        """
        latest = call.arrival + self._max_seconds
        deadline = latest if call.deadline is None else min(call.deadline, latest)
        work = Work(
            request,
            plan,
            self._drawer,
            self._scorer,
            deadline,
            needs_first=self._unranked == "first",
        )
        work.on_progress = lambda: on_progress(work)
        with self._billed(call, work):
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    choices = await self._find(call, work)
            except TimeoutError as error:
                raise DeadlinePassed(
                    f"no answer within {deadline - call.arrival:.3g} s; {len(work.drafts)} of "
                    f"{work.begun} candidates were drawn"
                ) from error
        self._metrics.observe(choices)
        return choices

    @contextmanager
    def _billed(self, call: Call, work: Work) -> Iterator[None]:
        """Take the most tokens that a call may spend, and give back what it doesn't."""
        reserved = most_tokens(work.request, work.plan)
        with self._metrics.spending_refusals(call.caller):
            self._spending.take(call.caller, reserved, time.monotonic())
        failed = False
        try:
            yield
        except BaseException as error:
            failed = isinstance(error, ServiceError) and not isinstance(error, DeadlinePassed)
            self._metrics.unanswered_tokens.inc(work.drawn)
            raise
        finally:
            unspent = reserved - spent_tokens(work, failed=failed)
            self._spending.give_back(call.caller, unspent, time.monotonic())

    async def _check_models(self, work: Work) -> None:
        """Refuse reward models that have no score for one answer, before anything is drawn."""
        models = reward_models(work.plan)
        looks = [self._scorer.ranks_only(model, work.deadline) for model in models.values()]
        for (field, model), ranks_only in zip(models.items(), await together(looks), strict=True):
            if ranks_only:
                raise InvalidRequest(f"guerdon.{field}", f"is {model!r}, which {RANKS_ONLY}")

    async def _find(self, call: Call, work: Work) -> RankedChoices:
        await self._check_models(work)
        try:
            ranking = await STRATEGIES[work.plan.strategy].find(work)
        except RankingFailed as error:
            if self._unranked == "refuse":
                self._metrics.unranked_refused.inc()
                raise
            reason = str(error)
            return _ranked_choices(call, work, await _first(work, reason), reason=reason)
        return _ranked_choices(call, work, ranking)


def most_tokens(request: PolicyRequest, plan: Plan) -> int:
    """The most tokens that a call may have drawn."""
    most = plan.best_of * request.sampling.max_tokens
    return most if plan.token_budget is None else min(most, plan.token_budget)


def spent_tokens(work: Work, *, failed: bool) -> int:
    """Tokens that a call has spent.

    A candidate that was stopped while it was drawn counts with the tokens that it had as last
    told, or with all that it may have had where nobody tells; and not at all where a service
    failed, which is not the caller's fault. Nor are tokens that updates of the weights wasted.
    """
    tokens = {index: draft.tokens for index, draft in work.drafts.items()}
    if failed:
        return sum(tokens.values())
    return sum((tokens | work.under_way | work.tokens_so_far).values())


async def _first(work: Work, reason: str) -> Ranking:
    """The first candidates by number, drawn to their end; none is ranked, for the reason."""
    plan, most = work.plan, work.request.sampling.max_tokens

    async def finish(draft: Draft) -> None:
        async for _ in work.go_on([draft], most - draft.tokens):
            pass

    parts = [work.drafts[i] for i in range(plan.n) if not work.drafts[i].ended]
    await together([finish(part) for part in parts])
    if all(draft.textless for draft in work.drafts.values()):
        raise RankingFailed(reason)
    unscored = Unscored(reason)
    return Ranking(ranked=tuple(Candidate(work.drafts[i], unscored) for i in range(plan.n)))


def _ranked_choices(call: Call, work: Work, ranking: Ranking, reason: str = "") -> RankedChoices:
    now = time.monotonic()
    drawn = work.last_drawn or now
    known = {each.draft.index: each for each in (*ranking.ranked, *ranking.unranked)}
    candidates = tuple(
        known.get(index, Candidate(draft, _NOT_SCORED))
        for index, draft in sorted(work.drafts.items())
        if index not in work.under_way
    )
    tokens = work.tokens()
    whole = (each for each in ranking.unranked if each.draft.ended)
    choices = (*ranking.ranked, *whole)[: work.plan.n]
    return RankedChoices(
        choices=choices,
        ranked=not reason,
        plan=work.plan,
        candidates=candidates,
        interrupted_tokens=work.interrupted_tokens,
        stopped=tuple(Stopped(index, tokens.get(index)) for index in sorted(work.under_way)),
        seconds=Seconds(draw=drawn - call.arrival, score=now - drawn, total=now - call.arrival),
        reason=reason,
        gain=_gain(choices[0], known.get(0)),
        notes=ranking.notes,
    )


def _gain(best: Candidate, first: Candidate | None) -> float | None:
    """How much better the answer is than candidate 0, where one model has scored both whole."""
    if first is None or not first.draft.ended:
        return None
    a, b = best.score, first.score
    if not isinstance(a, Score) or not isinstance(b, Score):
        return None
    same = (a.model, a.revision) == (b.model, b.revision)
    return a.value - b.value if same else None
