"""A judge: questions asked until they have verdicts, and verdicts made into scores.

A judge computes nothing here, and waits on the event loop: it takes no room in the queue and no
time of an engine. What brings no verdict is asked again, and fails the call in the end; nothing
stands for a verdict that was not given.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Generic, Protocol, TypeVar

from guerdon.reward.encoding.comparisons import (
    DISAGREEMENT,
    MAX_CANDIDATES,
    ordered_pairs,
    scores_by_votes,
)
from guerdon.reward.judge.budget import Asker, Budget, Slots
from guerdon.reward.judge.endpoint import AskFailed, JudgeEndpoint, Reply
from guerdon.reward.judge.question import JudgeQuestion, QuestionWriter
from guerdon.reward.judge.settings import JudgeSettings
from guerdon.reward.judge.verdict import JudgeVerdictReader, NoJudgeVerdict
from guerdon.reward.types import (
    Attribute,
    ComputeMode,
    ModelInfo,
    ModelKind,
    ResponseScore,
    ScoreItem,
)
from guerdon.serving.errors import (
    ComputeFailed,
    InvalidRequest,
    Overloaded,
    ServiceError,
    TooLarge,
    Unavailable,
)
from guerdon.together import together

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _SharedCall(Generic[R]):
    task: asyncio.Task[R]
    waiting: int = 0


class SharedCalls(Generic[R]):
    """Does the same work once at a time. It is cancelled when the last who waited has left.

    All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, _SharedCall[R]] = {}

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of the work under a key, which begins unless it is under way."""
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _SharedCall(asyncio.create_task(work()))
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            done = call.task.done()
            if (done or not call.waiting) and self._calls.get(key) is call:
                del self._calls[key]
            if not done and not call.waiting:
                call.task.cancel()


FIRST_DELAY, MOST_DELAY = 0.5, 8.0
"""Seconds before a verdict is asked for again, doubled each time, less a random part."""
MOST_PATIENCE = 30.0
"""Seconds: where the endpoint says to come back later than this, the caller is told to."""
FULL_RETRY_SECONDS = 1.0
"""When to come back after too many verdicts were waited for."""


class JudgeObserver(Protocol):
    """Told what is asked of endpoints, on the event loop."""

    def asked(self, info: ModelInfo, outcome: str, seconds: float, tokens: int) -> None:
        """A request ended: `outcome` is ok, no_verdict, that of an `AskFailed`, cancelled, or
        failed for a fault of ours."""
        ...

    def cached(self, info: ModelInfo) -> None:
        """A verdict was known already."""
        ...


class Judge:
    """A loaded judge. Its coroutines belong to one event loop.

    Args:
        name: under which it is served.
        settings: of the judge.
        key: of its endpoint.

    Raises:
        SettingsError: its template can't be used.
    """

    def __init__(self, name: str, settings: JudgeSettings, key: str) -> None:
        self._settings = settings
        self._compares = settings.ask == "compare"
        self._reader = JudgeVerdictReader(settings)
        self._writer = QuestionWriter(settings, self._reader)
        wanted = settings.verdict.form == "json" and settings.verdict.send_schema
        self._endpoint = JudgeEndpoint(settings, key, self._reader.schema if wanted else None)
        self._budget = Budget(settings.limits)
        self._slots = Slots(settings.limits.at_once)
        self._shared = SharedCalls[float]()
        self._known: OrderedDict[tuple[str, int], float] = OrderedDict()
        """Verdicts by question and vote, the latest used last."""
        self._waited_for = 0
        self.info = ModelInfo(
            name=name,
            revision=settings.revision,
            kind=ModelKind.JUDGE,
            architecture="",
            max_tokens=0,
            dtype="",
            device="",
            compute_mode=ComputeMode.REMOTE,
            base_model=settings.model,
            attributes=(Attribute(DISAGREEMENT, 0.0),) if self._compares else (),
            ranks_only=self._compares,
        )

    def questions(self, item: ScoreItem) -> list[JudgeQuestion]:
        """What is to be asked about an item; called from several threads at once.

        Args:
            item: as asked; its responses are to be ranked where the judge compares.

        Raises:
            InvalidRequest: with the field's path below the item.
            TooLarge: more verdicts are needed than may ever be waited for.
        """
        if not self._compares:
            return self._writer.scored(item)
        if not 2 <= len(item.responses) <= MAX_CANDIDATES:
            reason = f"must be two to {MAX_CANDIDATES}: the judge compares them"
            raise InvalidRequest("responses", reason)
        pairs = ordered_pairs(len(item.responses))
        # Before any text is read, since every pair costs the hash of two answers.
        self._check_count(self._settings.votes * len(pairs), "responses")
        return self._writer.compared(item, pairs)

    async def judge(
        self, asked: Sequence[Sequence[JudgeQuestion]], asker: Asker, observer: JudgeObserver
    ) -> list[list[ResponseScore]]:
        """The scores of items' responses; cancelling it ends the requests that nobody else wants.

        Args:
            asked: the questions about each item.
            asker: for whom.
            observer: told of each request.

        Raises:
            Overloaded: too much is asked at a time, or the budget is spent.
            TooLarge: more is asked than may ever be waited for.
            Unavailable: a question has no verdict after all tries.
            ComputeFailed: the endpoint refuses to be asked.
        """
        votes = self._settings.votes
        count = votes * sum(map(len, asked))
        self._check_room(count)
        self._waited_for += count
        try:
            verdicts = await together(
                [
                    self._verdict(question, vote, asker, observer)
                    for questions in asked
                    for question in questions
                    for vote in range(votes)
                ]
            )
        finally:
            self._waited_for -= count
        found = iter(verdicts)
        scores = []
        for questions in asked:
            voted = [[next(found) for _ in range(votes)] for _ in questions]
            scores.append(scores_by_votes(voted) if self._compares else list(map(_score, voted)))
        return scores

    def close(self) -> None:
        """Close the connections; from any thread but the event loop's."""
        self._endpoint.close()

    def _check_count(self, count: int, field: str) -> None:
        most = self._settings.limits.max_waiting
        if count > most:
            reason = (
                f"need {count} verdicts, more than the judge gives at a time "
                f"({most}, limits.max_waiting)"
            )
            raise TooLarge(field, reason)

    def _check_room(self, count: int) -> None:
        self._check_count(count, "items")
        if self._waited_for + count > self._settings.limits.max_waiting:
            raise Overloaded("too many verdicts are waited for", retry_after=FULL_RETRY_SECONDS)

    async def _verdict(
        self, question: JudgeQuestion, vote: int, asker: Asker, observer: JudgeObserver
    ) -> float:
        key = (question.hash, vote)
        if key in self._known:
            self._known.move_to_end(key)
            observer.cached(self.info)
            return self._known[key]
        return await self._shared.join(key, lambda: self._ask(question, vote, asker, observer))

    async def _ask(
        self, question: JudgeQuestion, vote: int, asker: Asker, observer: JudgeObserver
    ) -> float:
        """A verdict, in as many tries as there are."""
        tries = self._settings.limits.tries
        for number in range(tries):
            try:
                async with self._slots.one(asker):
                    self._budget.take()
                    verdict = await self._try(question, vote, observer)
            except AskFailed as error:
                if error.final or number == tries - 1 or (error.retry_after or 0) > MOST_PATIENCE:
                    raise self._failure(error, number + 1) from error
                await asyncio.sleep(_delay(number, error.retry_after))
            else:
                self._keep((question.hash, vote), verdict)
                return verdict
        raise AssertionError("there is one try at least")

    async def _try(self, question: JudgeQuestion, vote: int, observer: JudgeObserver) -> float:
        """A verdict in one try.

        Raises:
            AskFailed: it brought none.
        """
        began, outcome, tokens = time.monotonic(), "failed", 0
        try:
            reply = await self._endpoint.ask(self._writer.messages(question), vote)
            tokens = self._charge(reply)
            verdict = self._reader.read(reply.text)
            outcome = "ok"
        except NoJudgeVerdict as error:
            outcome = "no_verdict"
            raise AskFailed(outcome, f"gave no verdict: {error}") from error
        except AskFailed as error:
            outcome = error.outcome
            tokens = error.tokens
            self._budget.charge(tokens)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            observer.asked(self.info, outcome, time.monotonic() - began, tokens)
        return verdict

    def _charge(self, reply: Reply) -> int:
        if reply.tokens is None and self._budget.counts_tokens:
            raise AskFailed("invalid", "counts no tokens, and budget_tokens is set", final=True)
        self._budget.charge(reply.tokens or 0)
        return reply.tokens or 0

    def _failure(self, error: AskFailed, tries: int) -> ServiceError:
        reason = f"the endpoint of the judge {self.info.name!r} {error}"
        if error.final:
            return ComputeFailed(reason)
        if tries > 1:
            reason += f", in the last of {tries} tries"
        if error.outcome == "limited" and error.retry_after is not None:
            return Overloaded(reason, retry_after=error.retry_after)
        return Unavailable(reason)

    def _keep(self, key: tuple[str, int], verdict: float) -> None:
        self._known[key] = verdict
        while len(self._known) > self._settings.limits.cached:
            self._known.popitem(last=False)


def _score(votes: Sequence[float]) -> ResponseScore:
    spread = pstdev(votes) if len(votes) > 1 else None
    return ResponseScore(score=fmean(votes), members=tuple(votes), spread=spread)


def _delay(number: int, retry_after: float | None) -> float:
    """Seconds until the next try; not all come back at the same moment."""
    delay = min(FIRST_DELAY * 2.0**number, MOST_DELAY) * random.uniform(0.5, 1.0)  # noqa: S311
    return max(delay, retry_after or 0.0)
