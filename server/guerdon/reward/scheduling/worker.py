"""The engine's thread: takes jobs, asks the scheduler for batches, computes them, reports.

All models share one thread, for they share the device. The thread owns the scheduler; others
reach it only through a queue of commands, and it answers only through `on_report`. So nothing
is locked, and no caller waits for a batch to be formed.

    commands: Job | Abandon | None (stop)  ─▶  Worker  ─▶  Report, once for each batch
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from guerdon.reward.scheduling.events import Failure
from guerdon.reward.scheduling.scheduler import Batch, BatchLimits, Scheduler, Unit
from guerdon.reward.scheduling.watchdog import Running
from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    DeviceLost,
    EncodedItem,
    EngineOutOfMemory,
    PriorityClass,
    ResponseScore,
    RewardModel,
)
from guerdon.serving.access.identity import EVERYBODY, Caller
from guerdon.serving.errors import ComputeFailed, ServiceError, Unavailable

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """The items of one request, all for one model."""

    key: str
    model: RewardModel
    items: Sequence[EncodedItem]
    priority: PriorityClass
    deadline: float | None
    arrival: float
    caller: Caller = EVERYBODY
    abandoned: bool = False
    """Set on the event loop when nobody waits any more, and read here before each batch."""
    units: list[Unit] = field(default_factory=list)
    unreported: list[int] = field(default_factory=list)
    """Responses of each item that have not been reported. Only the worker's thread touches
    these two."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Drop what still waits of a job."""

    job: Job


@dataclass(frozen=True, slots=True)
class Piece:
    """Responses `start` to `stop` of one item of a job."""

    job: Job
    index: int
    start: int
    stop: int
    item: EncodedItem

    def halves(self) -> list[Piece]:
        """The first and the second half of its responses; there are at least two."""
        count, half = self.stop - self.start, (self.stop - self.start) // 2
        return [self._part(0, half), self._part(half, count)]

    def _part(self, first: int, last: int) -> Piece:
        start = self.start
        return Piece(self.job, self.index, start + first, start + last, self.item.part(first, last))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of responses `start` to `stop` of an item."""

    job: Job
    index: int
    start: int
    stop: int
    result: list[ResponseScore] | ServiceError | None
    """None where it was dropped before it reached the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One call of a model's `score`."""

    model: RewardModel
    seconds: float
    finished: float
    tokens: int
    """As queued: without padding."""
    stats: BatchStats | None = None
    """None when it failed."""
    failure: Failure | None = None
    nonfinite: int = 0
    """Responses whose numbers are not all finite."""


@dataclass(frozen=True, slots=True)
class Report:
    """What has ended: with a batch, or without one when work was dropped."""

    outcomes: list[Outcome]
    run: BatchRun | None = None


class Worker:
    """Runs the engine's thread.

    Args:
        on_report: called on the thread with every report.
        on_exit: called on the thread as it ends, with whether it failed.
        clock: seconds; the same that deadlines are in.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        on_report: Callable[[Report], None],
        on_exit: Callable[[bool], None],
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._scheduler = Scheduler(limits)
        self._jobs: set[Job] = set()
        """Those of which something has not been reported."""
        self._commands: queue.SimpleQueue[Job | Abandon | None] = queue.SimpleQueue()
        self._on_report = on_report
        self._on_exit = on_exit
        self._clock = clock
        self.running: Running | None = None
        """The batch in a model's hands. Other threads may look."""
        # A daemon: a forward pass that never ends must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="guerdon-engine", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def send(self, command: Job | Abandon | None) -> None:
        """Hand over work, take it back, or stop. Never blocks."""
        self._commands.put(command)

    def _run(self) -> None:
        failed = True
        try:
            while self._take_commands():
                self._guard(self._compute_next)
            failed = False
        except BaseException:
            logger.critical("the engine's thread has died", exc_info=True)
        finally:
            self._on_exit(failed)

    def _take_commands(self) -> bool:
        """Take all that has come, waiting only if there is nothing to do; False to stop."""
        wait = len(self._scheduler) == 0
        commands: list[Job | Abandon] = []
        while wait or not self._commands.empty():
            command = self._commands.get()
            wait = False
            if command is None:
                return False
            if isinstance(command, Job):
                command.unreported = [item.sequences for item in command.items]
                self._jobs.add(command)
            commands.append(command)
        self._guard(lambda: self._follow(commands))
        return True

    def _guard(self, work: Callable[[], None]) -> None:
        """Do a step of work. An error in it does not end the thread, nor leave a caller waiting.

        What a model raises is handled where it is called. An error that comes here is a defect
        of ours, met by the data of some request. The scheduler's state can't be trusted after
        it: all who wait are told to ask again, and an empty scheduler takes its place.
        """
        try:
            work()
        except DeviceLost:
            raise
        except Exception:
            logger.critical(
                "the scheduler failed; the %d calls in its queue are told to ask again",
                len(self._jobs),
                exc_info=True,
            )
            self._scheduler = Scheduler(self._limits)
            lost = Unavailable("an internal error emptied the queue; ask again")
            for job in list(self._jobs):
                self._report(
                    [
                        Outcome(job, index, 0, count, lost)
                        for index, count in enumerate(job.unreported)
                        if count
                    ]
                )

    def _follow(self, commands: Iterable[Job | Abandon]) -> None:
        dropped: list[Unit] = []
        for command in commands:
            if isinstance(command, Job):
                self._accept(command)
            elif command.job in self._jobs:
                dropped += [unit for unit in command.job.units if self._scheduler.cancel(unit)]
        self._dropped(dropped)

    def _accept(self, job: Job) -> None:
        job.units = [
            self._scheduler.add(
                job.key,
                item,
                priority=job.priority,
                deadline=job.deadline,
                now=job.arrival,
                owner=(job, index),
                caller=job.caller,
            )
            for index, item in enumerate(job.items)
        ]

    def _compute_next(self) -> None:
        formed = self._scheduler.next_batch(self._clock())
        self._dropped(formed.expired)
        if formed.batch is not None:
            self._compute(formed.batch)

    def _report(self, outcomes: list[Outcome], run: BatchRun | None = None) -> None:
        for outcome in outcomes:
            unreported = outcome.job.unreported
            unreported[outcome.index] -= outcome.stop - outcome.start
            if not any(unreported):
                self._jobs.discard(outcome.job)
        self._on_report(Report(outcomes, run))

    def _dropped(self, units: Iterable[Unit]) -> None:
        outcomes = []
        for unit in units:
            job, index = _owner(unit)
            outcomes.append(Outcome(job, index, unit.taken, unit.item.sequences, None))
        if outcomes:
            self._report(outcomes)

    def _compute(self, batch: Batch) -> None:
        pieces = [
            Piece(*_owner(part.unit), part.start, part.stop, part.item) for part in batch.parts
        ]
        waiting = [pieces]
        while waiting:
            wanted = self._wanted(waiting.pop())
            if wanted and self._compute_once(wanted) is Failure.OUT_OF_MEMORY:
                waiting += reversed(self._split(wanted))

    def _wanted(self, pieces: list[Piece]) -> list[Piece]:
        """Drop what nobody waits for: the last moment at which it costs no forward pass."""
        now = self._clock()
        wanted: list[Piece] = []
        dropped: list[Piece] = []
        for piece in pieces:
            deadline = piece.job.deadline
            late = deadline is not None and deadline <= now
            (dropped if piece.job.abandoned or late else wanted).append(piece)
        if dropped:
            self._report([_outcome(piece, None) for piece in dropped])
        return wanted

    def _compute_once(self, pieces: list[Piece]) -> Failure | None:
        """Call the model and report, except for pieces that can be tried again in halves."""
        model, key = pieces[0].job.model, pieces[0].job.key
        tokens = sum(piece.item.tokens for piece in pieces)
        self.running = Running(self._scheduler.batch_seconds(key, tokens))
        start = self._clock()
        try:
            scores, nonfinite, failure = _call(model, [piece.item for piece in pieces])
        finally:
            self.running = None
        finished = self._clock()
        outcomes = _outcomes(pieces, scores, failure)
        if nonfinite:
            logger.error("%s gave %d scores that are not finite", key, nonfinite)
        run = BatchRun(
            model=model,
            seconds=finished - start,
            finished=finished,
            tokens=tokens,
            stats=scores.stats if scores is not None else None,
            failure=Failure.NONFINITE if nonfinite else failure,
            nonfinite=nonfinite,
        )
        self._report(outcomes, run)
        if failure is Failure.OUT_OF_MEMORY:
            self._scheduler.out_of_memory(key, run.tokens)
        elif failure is None:
            self._scheduler.observe(key, run.tokens, run.seconds)
        return failure

    def _split(self, pieces: list[Piece]) -> list[list[Piece]]:
        if len(pieces) > 1:
            half = len(pieces) // 2
            return [pieces[:half], pieces[half:]]
        piece = pieces[0]
        if piece.stop - piece.start > 1:
            return [[half] for half in piece.halves()]
        return []


def is_finite(score: ResponseScore) -> bool:
    """Whether every number that a model gave for a response is finite."""
    numbers = (score.score, *score.attributes, *score.members, score.spread or 0.0)
    steps = (step.score for step in score.steps)
    return all(map(math.isfinite, numbers)) and all(map(math.isfinite, steps))


def _call(
    model: RewardModel, items: list[EncodedItem]
) -> tuple[BatchScores | None, int, Failure | None]:
    """Call the model; also the number of responses whose numbers are not finite.

    Its tracebacks, and the tensors they hold, end with this function.
    """
    try:
        scores = model.score(items)
        if [len(rows) for rows in scores.items] != [item.sequences for item in items]:
            raise ValueError("the model did not give one score for each response")
        nonfinite = sum(not is_finite(score) for rows in scores.items for score in rows)
    except EngineOutOfMemory:
        logger.warning("a batch of %d items did not fit in memory", len(items), exc_info=True)
        return None, 0, Failure.OUT_OF_MEMORY
    except DeviceLost:
        raise  # every later batch would fail, of any model: the thread ends, and the process
    except BaseException:  # also SystemExit: one model must not end the thread of all
        logger.exception("a batch of %d items failed", len(items))
        return None, 0, Failure.EXCEPTION
    return scores, nonfinite, None


def _outcomes(
    pieces: list[Piece], scores: BatchScores | None, failure: Failure | None
) -> list[Outcome]:
    """One outcome for each piece whose end has come."""
    if scores is not None:
        # Sequences of a batch do not attend to each other, so what made one of them NaN
        # (its own tokens through an overflow, say) says nothing against finite neighbours.
        # Weights that are NaN make every score NaN.
        nan = ComputeFailed("the model gave a score that is not a finite number")
        return [
            _outcome(piece, rows if all(map(is_finite, rows)) else nan)
            for piece, rows in zip(pieces, scores.items, strict=True)
        ]
    if failure is Failure.EXCEPTION:
        error = ComputeFailed("the model failed on the batch that held this request")
        return [_outcome(piece, error) for piece in pieces]
    if len(pieces) == 1 and pieces[0].item.sequences == 1:
        error = ComputeFailed("one response alone does not fit in the engine's memory")
        return [_outcome(pieces[0], error)]
    return []


def _outcome(piece: Piece, result: list[ResponseScore] | ServiceError | None) -> Outcome:
    return Outcome(piece.job, piece.index, piece.start, piece.stop, result)


def _owner(unit: Unit) -> tuple[Job, int]:
    assert isinstance(unit.owner, tuple)
    job, index = unit.owner
    return job, index
