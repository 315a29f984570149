"""One scoring call: several requests, one revision, one result in order."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from google.rpc import error_details_pb2

from guerdon.client import _wire
from guerdon.client.config import Clock, Limits
from guerdon.client.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MixedRevisions,
    NotFound,
    invalid,
)
from guerdon.client.types import Item, ItemScores, Score, ScoreResult, ScoringInfo, Timing
from guerdon.together import together
from guerdon.v1 import reward_pb2

T = TypeVar("T")
Ask = Callable[[reward_pb2.ScoreRequest], Awaitable[reward_pb2.ScoreResponse]]
"""Sends one request, retries included."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Responses `start` to `stop` of item `index`."""

    index: int
    start: int
    stop: int


@dataclass(slots=True)
class _Open:
    """The request that is being filled."""

    slices: list[Slice]
    size: int = 0
    responses: int = 0

    def fits(self, size: int, responses: int, limits: Limits) -> bool:
        return (
            self.size + size <= limits.max_bytes
            and self.responses + responses <= limits.max_responses
        )

    def add(self, piece: Slice, size: int) -> None:
        self.slices.append(piece)
        self.size += size
        self.responses += piece.stop - piece.start


def cut(items: Sequence[Item], limits: Limits) -> list[list[Slice]]:
    """The requests, each a list of slices, in the order of the items.

    An item stays whole where it fits a request of its own, so that its prompt is computed
    once; one that does not is cut between responses.

    Raises:
        InvalidArgument: a text is not valid Unicode.
    """
    parts: list[list[Slice]] = []
    current = _Open([])
    for index, item in enumerate(items):
        for piece, size in _pieces(index, item, limits):
            if current.slices and not current.fits(size, piece.stop - piece.start, limits):
                parts.append(current.slices)
                current = _Open([])
            current.add(piece, size)
    if current.slices:
        parts.append(current.slices)
    return parts


def _pieces(index: int, item: Item, limits: Limits) -> Iterator[tuple[Slice, int]]:
    """The item whole, or in as few pieces as the limits allow."""
    where = f"items[{index}]"
    head = _wire.prompt_bytes(item.prompt, f"{where}.prompt") + len(item.id) * 4 + 32
    start, size = 0, head
    for place, response in enumerate(item.responses):
        more = _wire.response_bytes(response, f"{where}.responses[{place}]")
        full = size + more > limits.max_bytes or place - start >= limits.max_responses
        if full and place > start:
            yield Slice(index, start, place), size
            start, size = place, head
        size += more
    yield Slice(index, start, len(item.responses)), size


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back for one part."""

    scores: list[ItemScores]
    info: ScoringInfo
    timing: Timing

    @property
    def version(self) -> str:
        return f"{self.info.model}@{self.info.revision}"


class ScoreCall:
    """One call of `score`.

    Args:
        ask: sends one request.
        model: as given.
        items: what to score.
        options: how.
    """

    def __init__(
        self,
        ask: Ask,
        model: str,
        items: Sequence[Item],
        options: reward_pb2.ScoreOptions,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._ask = ask
        self._model = check_model(model)
        self._items = check_items(items)
        self._options = options
        self._parts = cut(self._items, limits)
        self._limits = limits
        self._clock = clock

    async def run(self) -> ScoreResult:
        """Score everything.

        Raises:
            GuerdonError: a request failed for good, or no one revision could score it all.
        """
        begun = self._clock.now()
        answers = await self._score_all(range(len(self._parts)), self._model)
        spent = [answer.timing for answer in answers.values()]
        answers = await self._reconcile(answers, spent)
        timing = _wire.merge_timing(spent, self._clock.now() - begun)
        ordered = [answers[part] for part in range(len(self._parts))]
        return ScoreResult(self._assemble(ordered), _merge_info(ordered), timing)

    async def _score_all(self, parts: Sequence[int], model: str) -> dict[int, _Answer]:
        room = asyncio.Semaphore(self._limits.concurrency)

        async def one(part: int) -> _Answer:
            async with room:
                return await self._score_part(self._parts[part], model)

        found = await together([one(part) for part in parts])
        return dict(zip(parts, found, strict=True))

    async def _score_part(self, part: Sequence[Slice], model: str) -> _Answer:
        messages = [_wire.item(self._items[s.index], s.start, s.stop) for s in part]
        request = reward_pb2.ScoreRequest(model=model, items=messages, options=self._options)
        try:
            reply = await self._ask(request)
        except InvalidArgument as error:
            raise _in_callers_terms(error, part) from error.__cause__
        if len(reply.items) != len(part):
            raise Internal(f"the server sent {len(reply.items)} items for {len(part)}")
        scores = [
            _wire.item_scores(message, s.stop - s.start, self._items[s.index].id)
            for message, s in zip(reply.items, part, strict=True)
        ]
        return _Answer(scores, _wire.info(reply.info), _wire.timing(reply.timing))

    async def _reconcile(
        self, answers: dict[int, _Answer], spent: list[Timing]
    ) -> dict[int, _Answer]:
        """Make all answers come from one revision.

        When a model is promoted half-way, or servers behind a balancer differ, the parts of
        the minority are asked again, pinned to the revision of the majority; if that is gone
        by now, pinned to another one that answered.
        """
        versions = Counter(answer.version for answer in answers.values())
        if len(versions) == 1:
            return answers
        last: Exception | None = None
        for version, _ in versions.most_common():
            others = [part for part, answer in answers.items() if answer.version != version]
            try:
                again = await self._score_all(others, version)
            except (NotFound, FailedPrecondition) as error:
                last = error
                continue
            spent += [answer.timing for answer in again.values()]
            merged = {**answers, **again}
            if {answer.version for answer in merged.values()} == {version}:
                return merged
        names = ", ".join(sorted(versions))
        raise MixedRevisions(
            f"the parts of the call were scored by {names}, and none of them could score it all"
        ) from last

    def _assemble(self, answers: Sequence[_Answer]) -> tuple[ItemScores, ...]:
        scores: list[list[Score]] = [[] for _ in self._items]
        for part, answer in zip(self._parts, answers, strict=True):
            for piece, found in zip(part, answer.scores, strict=True):
                scores[piece.index] += found.scores
        return tuple(
            ItemScores(item.id, tuple(found))
            for item, found in zip(self._items, scores, strict=True)
        )


def check_model(model: str) -> str:
    """The model's name.

    Raises:
        InvalidArgument: it is none.
    """
    if not isinstance(model, str) or not model:
        raise invalid("model", "must be a model's name, an alias, or name@revision")
    return model


def check_items(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items.

    Raises:
        InvalidArgument: there is none, or one is not an `Item`.
    """
    if isinstance(items, Item):
        raise invalid("items", "must be a list of items, not one item")
    found = tuple(items)
    if not found:
        raise invalid("items", "is empty")
    for place, item in enumerate(found):
        if not isinstance(item, Item):
            raise invalid(f"items[{place}]", f"must be an Item, not {type(item).__name__}")
    return found


def _in_callers_terms(error: InvalidArgument, part: Sequence[Slice]) -> InvalidArgument:
    """An error of a request, with the places of the whole call instead of the request's."""

    def item_place(match: re.Match[str]) -> str:
        place = int(match[1])
        if place >= len(part):
            return match[0]
        piece = part[place]
        response = f".responses[{piece.start + int(match[2])}]" if match[2] else ""
        return f"items[{piece.index}]{response}"

    def renamed(text: str) -> str:
        return re.sub(r"items\[(\d+)\](?:\.responses\[(\d+)\])?", item_place, text, count=1)

    details = []
    for detail in error.details:
        if isinstance(detail, error_details_pb2.BadRequest):
            copy = error_details_pb2.BadRequest()
            copy.CopyFrom(detail)
            for violation in copy.field_violations:
                violation.field = renamed(violation.field)
            details.append(copy)
        else:
            details.append(detail)
    return InvalidArgument(renamed(error.message), code=error.code, details=details)


def _merge_info(answers: Sequence[_Answer]) -> ScoringInfo:
    first = answers[0].info
    modes = {answer.info.compute_mode for answer in answers}
    return first if len(modes) == 1 else replace(first, compute_mode="unspecified")
