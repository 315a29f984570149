"""One batch in a model's hands: it is computed, and each part of it gets its outcome."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from guerdon.reward.scheduling.calls import DispatchedItem
from guerdon.reward.scheduling.events import Failure
from guerdon.reward.scheduling.units import BatchPart, Unit
from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    DeviceLost,
    EncodedItem,
    EngineLost,
    EngineOutOfMemory,
    ResponseScore,
    RewardModel,
)
from guerdon.serving.errors import ComputeFailed, ServiceError, WorkLost

logger = logging.getLogger(__name__)

Parts = list[BatchPart[DispatchedItem]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of responses `start` to `stop` of an item."""

    item: DispatchedItem
    start: int
    stop: int
    result: list[ResponseScore] | ServiceError | None
    """None where it was dropped before it reached the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One call of a model's `score`."""

    model: RewardModel
    engine: int
    seconds: float
    finished: float
    tokens: int
    """Tokens as queued: without padding, prefixes once for each part."""
    stats: BatchStats | None = None
    """None when it failed."""
    failure: Failure | None = None
    nonfinite: int = 0
    """Responses whose numbers are not all finite."""
    preempting: bool = False
    """Whether it was computed between the layers of another batch."""
    preemptible: bool = False
    """Whether it would have stood aside for ONLINE work."""

    @property
    def new_tokens(self) -> int:
        """Tokens as queued, less those that something else had computed: its time goes by them."""
        if self.stats is None:
            return self.tokens
        return min(self.tokens, self.stats.computed_tokens - self.stats.padding_tokens)


def split_parts(parts: Parts) -> list[Parts]:
    """Two halves of what did not fit in memory; none of a single response."""
    if len(parts) > 1:
        half = len(parts) // 2
        return [parts[:half], parts[half:]]
    if parts[0].item.sequences > 1:
        return [[half] for half in parts[0].halves()]
    return []


def is_finite(score: ResponseScore) -> bool:
    """Whether every number that a model gave for a response is finite."""
    numbers = (score.score, *score.attributes, *score.members, score.spread or 0.0)
    steps = (step.score for step in score.steps)
    return all(map(math.isfinite, numbers)) and all(map(math.isfinite, steps))


def call_model(
    model: RewardModel, items: list[EncodedItem], engine: int, *, preempting: bool
) -> tuple[BatchScores | None, int, Failure | None]:
    """Call the model; also the number of responses whose numbers are not finite.

    Its tracebacks, and the tensors they hold, end with this function.
    """
    try:
        scores = model.score(items, engine, preempting=preempting)
        if [len(rows) for rows in scores.items] != [item.sequences for item in items]:
            raise ValueError("the model did not give one score for each response")
        nonfinite = sum(not is_finite(score) for rows in scores.items for score in rows)
    except EngineOutOfMemory:
        logger.warning("a batch of %d items did not fit in memory", len(items), exc_info=True)
        return None, 0, Failure.OUT_OF_MEMORY
    except EngineLost as error:
        logger.error("a batch of %d items was lost: %s", len(items), error)
        return None, 0, Failure.ENGINE_LOST
    except DeviceLost:
        raise  # every later batch would fail, of any model: the thread ends, and the process
    except BaseException:  # also SystemExit: one model must not end the thread of all
        logger.exception("a batch of %d items failed", len(items))
        return None, 0, Failure.EXCEPTION
    return scores, nonfinite, None


_ERRORS: Final[Mapping[Failure | None, ServiceError]] = {
    Failure.EXCEPTION: ComputeFailed("the model failed on the batch that held this request"),
    Failure.ENGINE_LOST: WorkLost("the engine ended while it computed the request; ask again"),
}


def batch_outcomes(
    parts: Parts, scores: BatchScores | None, failure: Failure | None
) -> list[Outcome]:
    """One outcome for each part whose end has come."""
    if scores is not None:
        # Sequences of a batch do not attend to each other, so what made one of them NaN
        # (its own tokens through an overflow, say) says nothing against finite neighbours.
        # Weights that are NaN make every score NaN.
        nan = ComputeFailed("the model gave a score that is not a finite number")
        return [
            part_outcome(part, rows if all(map(is_finite, rows)) else nan)
            for part, rows in zip(parts, scores.items, strict=True)
        ]
    if failure in _ERRORS:
        return [part_outcome(part, _ERRORS[failure]) for part in parts]
    if len(parts) == 1 and parts[0].item.sequences == 1:
        error = ComputeFailed("one response alone does not fit in the engine's memory")
        return [part_outcome(parts[0], error)]
    return []


def part_outcome(
    part: BatchPart[DispatchedItem], result: list[ResponseScore] | ServiceError | None
) -> Outcome:
    """The outcome of a part: its scores, an error, or None where it was dropped."""
    return Outcome(unit_owner(part.unit), part.start, part.stop, result)


def unit_owner(unit: Unit[DispatchedItem]) -> DispatchedItem:
    """The item that a unit was queued for."""
    assert unit.owner is not None
    return unit.owner
