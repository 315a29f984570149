"""The engine threads: they take calls, ask the scheduler for batches, compute them, and report.

There is a thread for each engine. Whichever is free takes what has come, forms a batch and has
it computed; all models share the engines, and one scheduler feeds them all. Others reach the
threads only through a queue of commands, and they answer only through `on_report`: no caller
waits for a batch to be formed.

    commands: DispatchedCall | Abandon | EngineEnded | Wake | None (stop)  ─▶  Worker
                                                 outcomes, once for each batch  ◀─┘
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from guerdon.reward.scheduling.calls import DispatchedCall, DispatchedItem
from guerdon.reward.scheduling.events import Failure
from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch, BatchPart, QueuedItem
from guerdon.reward.scheduling.watchdog import Running
from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    DeviceLost,
    EncodedItem,
    EngineKeeper,
    EngineLost,
    EngineOutOfMemory,
    ResponseScore,
    RewardModel,
)
from guerdon.serving.errors import ComputeFailed, ServiceError, Unavailable

logger = logging.getLogger(__name__)

_Parts = list[BatchPart[DispatchedItem]]


@dataclass(frozen=True, slots=True)
class Abandon:
    """A command to drop what still waits of a call."""

    call: DispatchedCall


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """A command to start an engine anew, if it has not been."""

    engine: int


@dataclass(frozen=True, slots=True)
class Wake:
    """A command to look for work: there is more than one batch of it."""


_Command = DispatchedCall | Abandon | EngineEnded | Wake


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

    @property
    def new_tokens(self) -> int:
        """Tokens as queued, less those that something else had computed: its time goes by them."""
        if self.stats is None:
            return self.tokens
        return min(self.tokens, self.stats.computed_tokens - self.stats.padding_tokens)


class Worker:
    """Runs the engine threads.

    Args:
        on_report: called on a thread with what has ended: with a batch, or without one when
            work was dropped.
        on_exit: called on the last thread as it ends, with whether one failed.
        on_engine: called on a thread with an engine and whether it can compute, when that changes.
        keeper: starts engines anew; None where models compute in this process, as one engine.
        clock: seconds; the same that deadlines are in.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        on_report: Callable[[list[Outcome], BatchRun | None], None],
        on_exit: Callable[[bool], None],
        on_engine: Callable[[int, bool], None] = lambda engine, up: None,
        keeper: EngineKeeper | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._scheduler = Scheduler[DispatchedItem](limits)
        self._calls: set[DispatchedCall] = set()
        """Those of which something has not been reported."""
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._on_report = on_report
        self._on_exit = on_exit
        self._on_engine = on_engine
        self._keeper = keeper
        self._clock = clock
        self.engines = 1 if keeper is None else keeper.engines
        self.running: dict[int, Running] = {}
        """The batch in each engine's hands. Other threads may look."""
        self._lock = threading.RLock()
        """Held while the scheduler, the calls or the sets of engines and threads are used."""
        self._free = list(range(self.engines))
        """Engines that compute nothing and can."""
        self._gone: set[int] = set()
        """Engines that can't be started any more."""
        self._failed = False
        # Daemons: a forward pass that never ends must not keep the process from ending.
        self._threads = {
            threading.Thread(target=self._run, name=f"guerdon-engine-{number}", daemon=True)
            for number in range(self.engines)
        }

    def start(self) -> None:
        """Begin to take work."""
        for thread in list(self._threads):
            thread.start()

    def send(self, command: _Command | None) -> None:
        """Hand over work, take it back, or stop. Never blocks."""
        self._commands.put(command)

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._guard(self._compute_next)
        except BaseException:
            self._failed = True
            logger.critical("an engine's thread has died", exc_info=True)
        finally:
            self._commands.put(None)  # for the other threads
            with self._lock:
                self._threads.discard(threading.current_thread())
                last = not self._threads
            if last:
                self._on_exit(self._failed)

    def _take_commands(self) -> bool:
        """Take all that has come, waiting only if there is nothing to do; False to stop."""
        with self._lock:
            wait = not (self._free and len(self._scheduler))
        commands: list[_Command] = []
        while wait or not self._commands.empty():
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:  # another thread was faster
                break
            wait = False
            if command is None:
                return False
            commands.append(command)
        self._guard(lambda: self._follow(commands))
        for command in commands:
            if isinstance(command, EngineEnded):
                self._commands.put(Wake())  # for what has come with it
                self._start_again(command.engine)
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
                len(self._calls),
                exc_info=True,
            )
            lost = Unavailable("an internal error emptied the queue; ask again")
            with self._lock:
                self._scheduler = Scheduler[DispatchedItem](self._limits)
                for call in list(self._calls):
                    waiting = [item for item in call.items if item.unreported]
                    self._report([Outcome(item, 0, item.unreported, lost) for item in waiting])

    def _follow(self, commands: Iterable[_Command]) -> None:
        dropped: list[QueuedItem[DispatchedItem]] = []
        with self._lock:
            # Before any is accepted: where one can't be, all of them are told.
            self._calls |= {each for each in commands if isinstance(each, DispatchedCall)}
            for command in commands:
                if isinstance(command, DispatchedCall):
                    self._accept(command)
                elif isinstance(command, Abandon) and command.call in self._calls:
                    units = [item.unit for item in command.call.items if item.unit is not None]
                    dropped += [unit for unit in units if self._scheduler.cancel(unit)]
            self._dropped(dropped)

    def _accept(self, call: DispatchedCall) -> None:
        for item in call.items:
            item.unit = self._scheduler.add(
                call.key,
                item.encoded,
                priority=call.ticket.priority,
                deadline=call.ticket.deadline,
                now=call.arrival,
                owner=item,
                caller=call.caller,
            )

    def _start_again(self, engine: int) -> None:
        """Have an engine that has ended started anew, unless another thread has it in hand."""
        with self._lock:
            if engine not in self._free:
                return
            self._free.remove(engine)
        self._give_back(engine)

    def _give_back(self, engine: int) -> None:
        """Let an engine be used again, after it was started anew if it has ended.

        Raises:
            DeviceLost: it can't be started, and no other engine is left.
        """
        if self._keeper is not None and self._keeper.lost(engine):
            self._on_engine(engine, False)
            try:
                self._keeper.restore(engine)
            except DeviceLost:
                with self._lock:
                    self._gone.add(engine)
                    if len(self._gone) == self.engines:
                        raise
                logger.critical("engine %d is given up; others go on", engine, exc_info=True)
                return
            self._on_engine(engine, True)
        with self._lock:
            self._free.append(engine)
            self._free.sort()

    def _compute_next(self) -> None:
        with self._lock:
            if not self._free:
                return
            formed = self._scheduler.next_batch(self._clock())
            self._dropped(formed.expired)
            if formed.batch is None:
                return
            engine = self._free.pop(0)
            if self._free and len(self._scheduler):
                self._commands.put(Wake())
        try:
            self._compute(formed.batch, engine)
        finally:
            self._give_back(engine)

    def _report(self, outcomes: list[Outcome], run: BatchRun | None = None) -> None:
        with self._lock:
            # None of calls that an error has ended while their batch was computed.
            outcomes = [outcome for outcome in outcomes if outcome.item.unreported]
            for outcome in outcomes:
                item = outcome.item
                item.unreported -= outcome.stop - outcome.start
                if not any(each.unreported for each in item.call.items):
                    self._calls.discard(item.call)
        self._on_report(outcomes, run)

    def _dropped(self, units: Iterable[QueuedItem[DispatchedItem]]) -> None:
        outcomes = [Outcome(_owner(unit), unit.taken, unit.item.sequences, None) for unit in units]
        if outcomes:
            self._report(outcomes)

    def _compute(self, batch: Batch[DispatchedItem], engine: int) -> None:
        waiting = [batch.parts]
        while waiting:
            wanted = self._wanted(waiting.pop())
            if wanted and self._compute_once(wanted, engine) is Failure.OUT_OF_MEMORY:
                waiting += reversed(_split(wanted))

    def _wanted(self, parts: _Parts) -> _Parts:
        """Drop what nobody waits for: the last moment at which it costs no forward pass."""
        now = self._clock()
        wanted: _Parts = []
        dropped: _Parts = []
        for part in parts:
            deadline = part.unit.deadline
            late = deadline is not None and deadline <= now
            (dropped if _owner(part.unit).call.abandoned or late else wanted).append(part)
        if dropped:
            self._report([_outcome(part, None) for part in dropped])
        return wanted

    def _compute_once(self, parts: _Parts, engine: int) -> Failure | None:
        """Call the model and report, except for parts that can be tried again in halves."""
        call = _owner(parts[0].unit).call
        model, key = call.model, call.key
        tokens = sum(part.tokens for part in parts)
        with self._lock:
            self.running[engine] = Running(self._scheduler.batch_seconds(key, tokens))
        start = self._clock()
        try:
            scores, nonfinite, failure = _call(model, [part.item for part in parts], engine)
        finally:
            del self.running[engine]
        finished = self._clock()
        outcomes = _outcomes(parts, scores, failure)
        if nonfinite:
            logger.error("%s gave %d scores that are not finite", key, nonfinite)
        run = BatchRun(
            model=model,
            engine=engine,
            seconds=finished - start,
            finished=finished,
            tokens=tokens,
            stats=scores.stats if scores is not None else None,
            failure=Failure.NONFINITE if nonfinite else failure,
            nonfinite=nonfinite,
        )
        self._report(outcomes, run)
        with self._lock:
            if failure is Failure.OUT_OF_MEMORY:
                self._scheduler.out_of_memory(key, run.tokens)
            elif failure is None:
                self._scheduler.observe(key, run.new_tokens, run.seconds)
        return failure


def _split(parts: _Parts) -> list[_Parts]:
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


def _call(
    model: RewardModel, items: list[EncodedItem], engine: int
) -> tuple[BatchScores | None, int, Failure | None]:
    """Call the model; also the number of responses whose numbers are not finite.

    Its tracebacks, and the tensors they hold, end with this function.
    """
    try:
        scores = model.score(items, engine)
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
    Failure.ENGINE_LOST: Unavailable("the engine ended while it computed the request; ask again"),
}


def _outcomes(parts: _Parts, scores: BatchScores | None, failure: Failure | None) -> list[Outcome]:
    """One outcome for each part whose end has come."""
    if scores is not None:
        # Sequences of a batch do not attend to each other, so what made one of them NaN
        # (its own tokens through an overflow, say) says nothing against finite neighbours.
        # Weights that are NaN make every score NaN.
        nan = ComputeFailed("the model gave a score that is not a finite number")
        return [
            _outcome(part, rows if all(map(is_finite, rows)) else nan)
            for part, rows in zip(parts, scores.items, strict=True)
        ]
    if failure in _ERRORS:
        return [_outcome(part, _ERRORS[failure]) for part in parts]
    if len(parts) == 1 and parts[0].item.sequences == 1:
        error = ComputeFailed("one response alone does not fit in the engine's memory")
        return [_outcome(parts[0], error)]
    return []


def _outcome(
    part: BatchPart[DispatchedItem], result: list[ResponseScore] | ServiceError | None
) -> Outcome:
    return Outcome(_owner(part.unit), part.start, part.stop, result)


def _owner(unit: QueuedItem[DispatchedItem]) -> DispatchedItem:
    assert unit.owner is not None
    return unit.owner
