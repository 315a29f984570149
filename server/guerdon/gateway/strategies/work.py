"""One call's work: its request and plan, its two services, and all that was drawn so far."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from guerdon.gateway.types import (
    Candidate,
    Draft,
    Drawer,
    Plan,
    PolicyRequest,
    RankingFailed,
    Score,
    Scorer,
    Unscored,
)
from guerdon.serving.errors import Interrupted
from guerdon.together import cancel

INTERRUPTIONS = 2
"""How often updates of the policy's weights may end candidates of a call that are drawn anew."""
_APART = 2**40
"""What seeds are apart before and after an interruption."""

Enough = Callable[[Sequence[Candidate]], bool]
"""Whether the candidates that have come so far are enough."""


@dataclass(slots=True, eq=False)
class Work:
    """One call's work."""

    request: PolicyRequest
    plan: Plan
    drawer: Drawer
    scorer: Scorer
    deadline: float
    """When the caller wants its answer, on `time.monotonic`'s clock."""
    needs_first: bool = False
    """Whether the first candidates by number are waited for when no ranking is to be had: they
    are the choices then. Those that end first would be the short ones."""
    on_progress: Callable[[], None] = lambda: None
    """Called when a candidate was begun, drawn or scored."""
    begun: int = 0
    """Candidates that were asked for."""
    drafts: dict[int, Draft] = field(default_factory=dict)
    """The latest of each candidate that is known, by index."""
    under_way: dict[int, int] = field(default_factory=dict)
    """The most tokens that each candidate that is being drawn may have in the end, by index."""
    tokens_so_far: dict[int, int] = field(default_factory=dict)
    """Tokens that each of these has so far, by index, where the policy tells them."""
    interruptions: int = 0
    """How often updates of the weights ended candidates."""
    interrupted_tokens: int = 0
    """Tokens drawn of candidates that updates of the weights ended, and that were drawn anew."""
    scored: int = 0
    """Candidates with a score, or known to have none."""
    last_drawn: float | None = None
    """When the last draft came, on the deadline's clock."""
    revisions: dict[str, str] = field(default_factory=dict)
    """The revision that scores, by the model's name."""
    trouble: RankingFailed | None = None
    """Why no ranking is to be had."""

    def draw(self, n: int, *, max_tokens: int | None = None) -> AsyncGenerator[Draft, None]:
        """So many more candidates, each as it ends."""
        first, self.begun = self.begun, self.begun + n
        most = self.request.sampling.max_tokens if max_tokens is None else max_tokens
        self.under_way |= dict.fromkeys(range(first, self.begun), most)

        def begin(request: PolicyRequest, indices: Sequence[int]) -> AsyncGenerator[Draft, None]:
            return self.drawer.draw(
                request,
                indices,
                max_tokens=most,
                deadline=self.deadline,
                on_tokens=self._note_tokens,
            )

        return self._all(range(first, self.begun), begin)

    def go_on(self, drafts: Sequence[Draft], max_tokens: int) -> AsyncGenerator[Draft, None]:
        """Drafts with up to so many tokens more, each as it ends."""
        self.under_way |= {draft.index: draft.tokens + max_tokens for draft in drafts}

        def begin(request: PolicyRequest, indices: Sequence[int]) -> AsyncGenerator[Draft, None]:
            return self.drawer.go_on(
                request,
                [self.drafts[index] for index in indices],
                max_tokens=max_tokens,
                deadline=self.deadline,
                on_tokens=self._note_tokens,
            )

        return self._all([draft.index for draft in drafts], begin)

    async def _all(
        self,
        indices: Sequence[int],
        begin: Callable[[PolicyRequest, Sequence[int]], AsyncGenerator[Draft, None]],
    ) -> AsyncGenerator[Draft, None]:
        """Candidates, each as it ends; those that updates of the weights end are drawn anew.

        Raises:
            Interrupted: they were ended too often, or the token budget has no room for them.
        """
        missing, request = list(indices), self.request
        while True:
            try:
                async with contextlib.aclosing(begin(request, tuple(missing))) as drawing:
                    async for draft in drawing:
                        missing.remove(draft.index)
                        self._note(draft)
                        yield draft
                return
            except Interrupted:
                self._count_interrupted(missing)
                if self.interruptions > INTERRUPTIONS or not self._affordable(missing):
                    raise
                request = _with_other_seed(self.request, self.interruptions)

    def _count_interrupted(self, indices: Sequence[int]) -> None:
        """Count what was drawn in vain of candidates, which have again what they had before."""
        self.interruptions += 1
        for index in indices:
            before = self._kept(index)
            self.interrupted_tokens += self.tokens_so_far.get(index, before) - before
            self.tokens_so_far[index] = before

    def _affordable(self, indices: Sequence[int]) -> bool:
        """Whether the token budget has room for all that candidates may need."""
        budget = self.plan.token_budget
        needed = sum(self.under_way[index] - self._kept(index) for index in indices)
        return budget is None or self.drawn + needed <= budget

    def _kept(self, index: int) -> int:
        """Tokens of a candidate's latest draft."""
        return self.drafts[index].tokens if index in self.drafts else 0

    def _note(self, draft: Draft) -> None:
        self.drafts[draft.index] = draft
        self.under_way.pop(draft.index, None)
        self.tokens_so_far.pop(draft.index, None)
        self.last_drawn = time.monotonic()
        self.on_progress()

    def _note_tokens(self, index: int, tokens: int) -> None:
        self.tokens_so_far[index] = tokens

    def tokens(self) -> dict[int, int]:
        """Tokens that were drawn of each candidate of which that is known, by index."""
        return {index: draft.tokens for index, draft in self.drafts.items()} | self.tokens_so_far

    @property
    def drawn(self) -> int:
        """Tokens that were drawn for this call, as far as that is known."""
        return sum(self.tokens().values()) + self.interrupted_tokens

    async def score(self, draft: Draft, model: str | None = None) -> Candidate:
        """A draft with its score; where the rewards are away it has none, and `trouble` is set."""
        name = self.plan.model if model is None else model
        pinned = f"{name}@{self.revisions[name]}" if name in self.revisions else name
        score: Score | Unscored
        try:
            if draft.textless:
                score = Unscored("has no text")
            else:
                score = await self.scorer.score(pinned, self.request, draft.text, self.deadline)
            if isinstance(score, Score):
                self._check_revision(name, score)
        except RankingFailed as error:
            self.trouble = self.trouble or error
            score = Unscored(str(error))
        self.scored += 1
        self.on_progress()
        return Candidate(draft, score)

    def _check_revision(self, name: str, score: Score) -> None:
        """Hold all scores of a model to one revision: those of two are not comparable."""
        if self.revisions.setdefault(name, score.revision) != score.revision:
            raise RankingFailed(f"another revision of {name} was promoted meanwhile: ask again")

    @property
    def given_up(self) -> bool:
        """Whether nothing more need be waited for, since no ranking will be had."""
        first = range(self.plan.n if self.needs_first else 0)
        return self.trouble is not None and all(index in self.drafts for index in first)

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that can be ranked, by index.

        Raises:
            RankingFailed: rewards are away, or none can be.
        """
        if self.trouble is not None:
            raise self.trouble
        ranked = [each for each in candidates if each.scored]
        if not ranked:
            reasons = [c.score.reason for c in candidates if isinstance(c.score, Unscored)]
            why = f"; of the first: {reasons[0]}" if reasons else ""
            raise RankingFailed(f"none of {len(candidates)} candidates has a score{why}")
        return sorted(ranked, key=lambda each: each.draft.index)


def _with_other_seed(request: PolicyRequest, number: int) -> PolicyRequest:
    """The request for the next draw: with the same seed, what has come would be drawn twice."""
    seed = request.sampling.seed
    if seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + number * _APART))


async def gather(
    work: Work,
    drawing: AsyncGenerator[Draft, None],
    *,
    enough: Enough = lambda found: False,
    until: float | None = None,
    model: str | None = None,
) -> list[Candidate]:
    """Candidates, each scored as soon as it has ended; what is not needed is stopped.

    Args:
        work: the call's.
        drawing: what is drawn.
        enough: when to stop.
        until: the time after which no more is waited for, if as many as are asked for are scored.
        model: the reward model; the plan's when not given.

    Raises:
        ServiceError: the policy can't or won't, or the model can't score.
    """
    found: list[Candidate] = []
    changed = asyncio.Event()

    async def score(draft: Draft) -> None:
        found.append(await work.score(draft, model))
        changed.set()

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group, contextlib.aclosing(drawing):
                async for draft in drawing:
                    changed.set()
                    group.create_task(score(draft))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            changed.set()

    def answerable() -> bool:
        return sum(each.scored for each in found) >= work.plan.n

    def over() -> bool:
        if work.trouble is not None:
            return work.given_up
        late = until is not None and time.monotonic() >= until and answerable()
        return late or enough(found)

    running = asyncio.ensure_future(run())
    try:
        while not running.done() and not over():
            changed.clear()
            await _wait(changed, until if answerable() else None)
        if running.done() and not over():
            running.result()
    finally:
        await cancel([running])
    return sorted(found, key=lambda each: each.draft.index)


async def _wait(event: asyncio.Event, until: float | None) -> None:
    """Wait for an event, or for a time on `time.monotonic`'s clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else until - time.monotonic()):
            await event.wait()
