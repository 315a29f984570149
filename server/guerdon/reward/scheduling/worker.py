"""The engine threads: they take calls, ask the scheduler for batches, compute them, and report.

There is a thread for each engine, and another one for batches that go between the layers of the one
that it computes. Whichever is free takes what has come, forms a batch and has it computed; all
models share the engines, and one scheduler feeds them all. Others reach the threads only through a
queue of commands, and they answer only through `on_report`: no caller waits for a batch to be
formed.

    commands: DispatchedCall | Abandon | EngineEnded | Wake | None (stop)  ─▶  Worker
                                                 outcomes, once for each batch  ◀─┘
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from guerdon.reward.scheduling.batch_run import (
    BatchRun,
    Outcome,
    Parts,
    batch_outcomes,
    call_model,
    part_outcome,
    split_parts,
    unit_owner,
)
from guerdon.reward.scheduling.calls import DispatchedCall, DispatchedItem
from guerdon.reward.scheduling.events import Failure
from guerdon.reward.scheduling.in_hand import BatchesInHand
from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch, Unit
from guerdon.reward.types import DeviceLost, EngineKeeper, RewardModel
from guerdon.serving.errors import Unavailable

logger = logging.getLogger(__name__)


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


class Worker:
    """Runs the engine threads.

    Args:
        on_report: called on a thread with what has ended: with a batch, or without one when
            work was dropped.
        on_exit: called on the last thread as it ends, with whether one failed.
        on_engine: called on a thread with an engine and whether it can compute, when that changes.
        keeper: starts engines anew; None where models compute in this process, as one engine.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        on_report: Callable[[list[Outcome], BatchRun | None], None],
        on_exit: Callable[[bool], None],
        on_engine: Callable[[int, bool], None] = lambda engine, up: None,
        keeper: EngineKeeper | None = None,
    ) -> None:
        self._limits = limits
        self.engines = 1 if keeper is None else keeper.engines
        self._scheduler = Scheduler[DispatchedItem](limits, self.engines)
        self._calls: set[DispatchedCall] = set()
        """Those of which something has not been reported."""
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._on_report = on_report
        self._on_exit = on_exit
        self._on_engine = on_engine
        self._keeper = keeper
        self._in_hand = BatchesInHand[DispatchedItem](limits.batch_share)
        self.running = self._in_hand.running
        """The batch that each engine computes at the moment. Other threads may look."""
        self._lock = threading.RLock()
        """Held while the scheduler, the calls or the sets of engines and threads are used."""
        self._free = list(range(self.engines))
        """Engines that compute nothing and can."""
        self._users = [0] * self.engines
        """Threads that use each engine: one, or another one that preempts its batch."""
        self._gone: set[int] = set()
        """Engines that can't be started any more."""
        self._failed = False
        # Daemons: a forward pass that never ends must not keep the process from ending.
        self._threads = {
            threading.Thread(target=self._run, name=f"guerdon-engine-{number}", daemon=True)
            for number in range(self.engines if keeper is None else 2 * self.engines)
        }

    def preemptible(self, model: RewardModel) -> bool:
        """Whether a model's batches stand aside: in this process each engine computes one batch."""
        return self._keeper is not None and model.info.preemptible

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
        """Take all that has come, waiting only while there is nothing to do; False to stop."""
        with self._lock:
            wait = self._until_work()
        commands: list[_Command] = []
        while wait != 0.0 or not self._commands.empty():
            try:
                command = self._commands.get(block=wait != 0.0, timeout=wait)
            except queue.Empty:  # another thread was faster, or the time has come
                break
            wait = 0.0
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
                self._scheduler = Scheduler[DispatchedItem](self._limits, self.engines)
                for call in list(self._calls):
                    waiting = [item for item in call.items if item.unreported]
                    self._report([Outcome(item, 0, item.unreported, lost) for item in waiting])

    def _follow(self, commands: Iterable[_Command]) -> None:
        dropped: list[Unit[DispatchedItem]] = []
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
                cache_tokens=call.model.info.prefix_cache_tokens,
                preemptible=self.preemptible(call.model),
            )

    def _until_work(self) -> float | None:
        """Seconds until an engine can take of what waits; None while none will."""
        if self._free:
            return 0.0 if len(self._scheduler) else None
        now, times = time.monotonic(), [when for when, _, _ in self._waited_for()]
        return max(0.0, min(times) - now) if times else None

    def _waited_for(self) -> list[tuple[float, int, Batch[DispatchedItem]]]:
        """Engines whose batch something waits to preempt, when it may, and the batch."""
        if self._keeper is None:
            return []
        return [
            (when, engine, batch)
            for when, engine, batch in self._in_hand.preemptible()
            if self._users[engine] == 1
            and self._scheduler.stands_aside(batch)
            and not self._keeper.lost(engine)
        ]

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
                self._scheduler.cache_emptied(engine)
        with self._lock:
            self._free.append(engine)
            self._free.sort()

    def _compute_next(self) -> None:
        with self._lock:
            now, running = time.monotonic(), None
            if self._free:
                engine = self._free[0]
            elif ready := [each for each in self._waited_for() if each[0] <= now]:
                _, engine, running = min(ready, key=lambda each: each[0])
            else:
                return
            formed = self._scheduler.next_batch(now, engine, running)
            self._dropped(formed.expired)
            if formed.batch is None:
                return
            if running is None:
                self._free.remove(engine)
            self._users[engine] += 1
            if self._free and len(self._scheduler):
                self._commands.put(Wake())
        try:
            self._compute(formed.batch, engine, preempting=running is not None)
        finally:
            with self._lock:
                self._users[engine] -= 1
                last = not self._users[engine]
            if last:
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

    def _dropped(self, units: Iterable[Unit[DispatchedItem]]) -> None:
        outcomes = [
            Outcome(unit_owner(unit), unit.taken, unit.item.sequences, None) for unit in units
        ]
        if outcomes:
            self._report(outcomes)

    def _compute(self, batch: Batch[DispatchedItem], engine: int, *, preempting: bool) -> None:
        waiting = [batch.parts]
        while waiting:
            wanted = self._wanted(waiting.pop())
            if not wanted:
                continue
            failure = self._compute_once(batch, wanted, engine, preempting=preempting)
            if failure is Failure.OUT_OF_MEMORY:
                waiting += reversed(split_parts(wanted))

    def _wanted(self, parts: Parts) -> Parts:
        """Drop what nobody waits for: the last moment at which it costs no forward pass."""
        now = time.monotonic()
        wanted: Parts = []
        dropped: Parts = []
        for part in parts:
            deadline = part.unit.deadline
            late = deadline is not None and deadline <= now
            (dropped if unit_owner(part.unit).call.abandoned or late else wanted).append(part)
        if dropped:
            self._report([part_outcome(part, None) for part in dropped])
        return wanted

    def _compute_once(
        self, batch: Batch[DispatchedItem], parts: Parts, engine: int, *, preempting: bool
    ) -> Failure | None:
        """Have parts of a batch computed and report, except where halves can be tried again."""
        call = unit_owner(parts[0].unit).call
        model, key = call.model, call.key
        tokens = sum(part.tokens for part in parts)
        with self._lock:
            expected = self._scheduler.batch_seconds(key, tokens)
            now = time.monotonic()
            in_hand = self._in_hand.begin(engine, batch, expected, now, preempting=preempting)
            if self._waited_for():
                self._commands.put(Wake())
        measured = None
        try:
            items = [part.item for part in parts]
            scores, nonfinite, failure = call_model(model, items, engine, preempting=preempting)
            measured = None if scores is None else scores.stats.seconds
        finally:
            with self._lock:
                finished = time.monotonic()
                seconds = self._in_hand.end(engine, in_hand, finished, measured)
        outcomes = batch_outcomes(parts, scores, failure)
        if nonfinite:
            logger.error("%s gave %d scores that are not finite", key, nonfinite)
        run = BatchRun(
            model=model,
            engine=engine,
            seconds=seconds,
            finished=finished,
            tokens=tokens,
            stats=scores.stats if scores is not None else None,
            failure=Failure.NONFINITE if nonfinite else failure,
            nonfinite=nonfinite,
            preempting=preempting,
            preemptible=batch.preemptible,
        )
        self._report(outcomes, run)
        with self._lock:
            if failure is not None:
                self._scheduler.cache_emptied(engine)
            if failure is Failure.OUT_OF_MEMORY:
                self._scheduler.out_of_memory(key, run.tokens)
            elif failure is None:
                self._scheduler.observe(key, run.new_tokens, run.seconds)
        return failure
