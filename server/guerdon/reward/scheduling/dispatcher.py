"""The dispatcher: from requests on the event loop to the engine threads, and back.

    dispatcher = Dispatcher(limits=DispatchLimits(), observer=observer)
    dispatcher.start()                                        # on the event loop
    with dispatcher.reserve(model_name=…, priority=…, text_bytes=…, deadline=…) as ticket:
        items = …                                             # tokenise, off the event loop
        results = await dispatcher.score(ticket, key, model, items)
    await dispatcher.idle(key)                                # then `model.close()` is safe
    await dispatcher.stop(grace=30)

Deadlines are points of `time.monotonic`. All methods belong to the event loop on which `start` was
called; none of them blocks it. Each batch comes back in one `call_soon_threadsafe`.

Nothing waits for ever: a caller gets its scores, or `DeadlinePassed` at its deadline, or
`ComputeFailed`, or `Unavailable` when the server stops, or an engine ends under its batch, or none
can be started any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from guerdon.reward.scheduling.admission import Admission, Ticket
from guerdon.reward.scheduling.announcer import Announcer
from guerdon.reward.scheduling.batch_run import BatchRun, Outcome
from guerdon.reward.scheduling.calls import DispatchedCall, DispatchedItem, ItemResult
from guerdon.reward.scheduling.events import DispatchObserver, DropReason, DropStage, Failure
from guerdon.reward.scheduling.limits import DispatchLimits
from guerdon.reward.scheduling.watchdog import Watchdog
from guerdon.reward.scheduling.worker import Abandon, EngineEnded, Worker
from guerdon.reward.types import EncodedItem, EngineKeeper, PriorityClass, RewardModel
from guerdon.serving.access.identity import EVERYBODY, Caller
from guerdon.serving.errors import DeadlinePassed, Overloaded, ServiceError, Unavailable
from guerdon.serving.waiting import left_late

logger = logging.getLogger(__name__)


class Dispatcher:
    """Admits requests, has them computed in batches, and hands the scores back.

    Args:
        keeper: starts the engine anew when it has ended; None where models compute in this
            process, and nothing can.
    """

    def __init__(
        self,
        *,
        limits: DispatchLimits,
        observer: DispatchObserver,
        keeper: EngineKeeper | None = None,
    ) -> None:
        self._announcer = Announcer(observer, self._count_queue)
        self._admission = Admission(limits.queue, limits.batch)
        self._worker = Worker(
            limits.batch,
            on_report=lambda outcomes, run: self._post(self._deliver, outcomes, run),
            on_exit=lambda failed: self._post(self._threads_ended, failed),
            on_engine=lambda engine, up: self._post(self._tell_engine, engine, up),
            keeper=keeper,
        )
        self._keeper = keeper
        self._watchdogs = [Watchdog(limits.hang_seconds) for _ in range(self._worker.engines)]
        self._engines_up: set[int] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = False
        self._hung = False
        """Whether the engine thread was given up and has not ended."""
        self._draining = False
        self._tickets: set[Ticket] = set()
        """Tickets of requests that are still tokenised."""
        self._calls: set[DispatchedCall] = set()
        self._items = dict.fromkeys(PriorityClass, 0)
        self._changed: list[asyncio.Future[None]] = []
        """Woken when work has ended."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests: started, not draining, and an engine thread alive."""
        return self._up and not self._draining

    def start(self) -> None:
        """Start the engine threads; called once, on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        self._up = True
        self._look()
        for engine in range(self._worker.engines):
            self._tell_engine(engine, True)

    def reserve(
        self,
        *,
        model_name: str,
        priority: PriorityClass,
        text_bytes: int,
        deadline: float | None,
        caller: Caller = EVERYBODY,
        most: int | None = None,
    ) -> Ticket:
        """Hold room for a request that is still to be tokenised.

        Args:
            model_name: the name that the drain rate is measured by.
            text_bytes: UTF-8 bytes of the prompts (each once) and of all responses; of token
                ids, 4 for each.
            caller: whose request it is.
            most: tokens beyond which it is refused once they are counted, if that is known.

        Raises:
            Overloaded: come back in `retry_after` seconds.
            TooLarge: there will never be room.
            DeadlinePassed: too late already.
            Unavailable: starting, draining, or the engine has stopped.
        """
        self._check_ready(self.ready)
        try:
            ticket = self._admission.reserve(
                model_name=model_name,
                priority=priority,
                text_bytes=text_bytes,
                deadline=deadline,
                now=time.monotonic(),
                caller=caller,
                most=most,
                on_close=self._close_ticket,
            )
        except Overloaded:
            self._announcer.tell(lambda observer: observer.shed(model_name, priority))
            raise
        self._tickets.add(ticket)
        self._announcer.tell_queue()
        return ticket

    async def score(
        self, ticket: Ticket, key: str, model: RewardModel, items: Sequence[EncodedItem]
    ) -> list[ItemResult]:
        """Have the items computed; results are in their order. Once for each ticket.

        Cancelling the task drops what still waits.

        Args:
            key: names the model's revision: a batch holds one key, and a key has one model.

        Raises:
            Overloaded: there are more tokens than was estimated, and no room for them.
            TooLarge: the request is larger than the queue.
            DeadlinePassed: at the deadline, wherever the work is.
            ComputeFailed: the model failed, or its score is not finite.
            Unavailable: the server stops, or the engine has stopped.
        """
        assert ticket in self._tickets, "a ticket is good for one call"
        deadline = ticket.deadline
        now = time.monotonic()
        self._check_ready(self._up)
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline passed while the request was tokenised")
        assert all(item.suffixes for item in items), "an item has at least one response"
        if not items:
            return []
        self._settle(ticket, sum(item.tokens for item in items), now)
        return await self._wait(self._submit(ticket, key, model, items, now))

    def engine_ended(self, engine: int) -> None:
        """Have an engine started anew if it has ended. May be called on any thread."""
        self._worker.send(EngineEnded(engine))

    async def idle(self, key: str) -> None:
        """Wait until the engine holds no work of a key, not even for callers who have left."""
        while any(call.key == key for call in self._calls):
            await self._change()

    async def stop(self, grace: float) -> bool:
        """Refuse new requests, finish the accepted ones, stop the engine threads.

        What is not finished after `grace` seconds fails with `Unavailable`.

        Returns:
            Whether the thread has ended: if not, a forward pass is still running, and its
            model must not be closed.
        """
        self._draining = True
        end = time.monotonic() + grace
        while self._up and (self._calls or self._tickets):
            if not await self._change(end - time.monotonic()):
                break
        for call in list(self._calls):
            self._fail(call, Unavailable("the server stopped before the request was done"))
        self._worker.send(None)
        # The batch in hand, if any, cannot be interrupted.
        while (self._up or self._hung) and await self._change(max(end - time.monotonic(), 0.5)):
            pass
        return not (self._up or self._hung)

    def _check_ready(self, ready: bool) -> None:
        if ready:
            return
        if self._draining:
            raise Unavailable("the server is shutting down")
        raise Unavailable("the server is starting" if self._loop is None else _DEAD)

    def _settle(self, ticket: Ticket, tokens: int, now: float) -> None:
        try:
            self._admission.settle(ticket, tokens, now=now)
        except Overloaded:
            self._announcer.tell(lambda observer: observer.shed(ticket.model_name, ticket.priority))
            raise
        finally:
            self._announcer.tell_queue()

    def _submit(
        self, ticket: Ticket, key: str, model: RewardModel, items: Sequence[EncodedItem], now: float
    ) -> DispatchedCall:
        assert self._loop is not None
        call = DispatchedCall(key, model, items, ticket, now, self._loop.create_future())
        self._tickets.remove(ticket)
        self._calls.add(call)
        self._items[ticket.priority] += len(items)
        self._worker.send(call)
        self._announcer.tell_queue()
        return call

    async def _wait(self, call: DispatchedCall) -> list[ItemResult]:
        assert self._loop is not None
        deadline, timer = call.ticket.deadline, None
        if deadline is not None:
            timer = self._loop.call_later(deadline - time.monotonic(), self._expire, call)
        try:
            return await call.future
        except asyncio.CancelledError:
            late = left_late(deadline, time.monotonic())
            self._abandon(call, DropReason.EXPIRED if late else DropReason.CANCELLED)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, call: DispatchedCall) -> None:
        error = DeadlinePassed("the deadline passed before the request was computed")
        self._fail(call, error, DropReason.EXPIRED)

    def _fail(
        self, call: DispatchedCall, error: ServiceError, reason: DropReason | None = None
    ) -> None:
        if not call.future.done():
            call.future.set_exception(error)
            self._abandon(call, reason)

    def _abandon(self, call: DispatchedCall, reason: DropReason | None) -> None:
        if not call.abandoned:
            call.abandoned = True
            call.reason = reason
            self._worker.send(Abandon(call))

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Run a function on the event loop; called on an engine thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed, and with it went whoever waited
            logger.debug("the event loop is closed: a report is lost")

    def _deliver(self, outcomes: list[Outcome], run: BatchRun | None) -> None:
        if self._hung:  # its callers were told that the engine has stopped
            return
        for outcome in outcomes:
            self._record(outcome, run)
        if run is None:
            return
        if run.failure in (None, Failure.NONFINITE):
            for name in {outcome.item.call.ticket.model_name for outcome in outcomes}:
                # Engines compute side by side: work drains as fast as all of them.
                seconds = run.seconds / max(1, len(self._engines_up))
                self._admission.observe(
                    name,
                    run.tokens,
                    seconds,
                    now=run.finished,
                    preemptible=run.preemptible,
                    model_preemptible=self._worker.preemptible(run.model),
                )
        # After those who were just woken: telling is not worth their time.
        assert self._loop is not None
        self._loop.call_soon(self._announcer.tell_run, run)

    def _record(self, outcome: Outcome, run: BatchRun | None) -> None:
        item, call = outcome.item, outcome.item.call
        item.left -= outcome.stop - outcome.start
        if run is not None:
            item.compute_seconds += run.seconds
            item.finished = run.finished
        if outcome.result is None:
            item.unfinished = True
            if not call.future.done():  # the scheduler saw it expire before the timer did
                self._expire(call)
        elif isinstance(outcome.result, ServiceError):
            self._fail(call, outcome.result)
        else:
            item.scores[outcome.start : outcome.stop] = outcome.result
        if item.left == 0:
            self._end_item(item)

    def _end_item(self, item: DispatchedItem) -> None:
        call, priority = item.call, item.call.ticket.priority
        self._admission.release(call.ticket, item.encoded.tokens)
        self._items[priority] -= 1
        call.left -= 1
        if call.left == 0:
            if not call.future.done():
                call.future.set_result([each.result() for each in call.items])
            self._end_call(call)
        self._announcer.tell_queue()
        reason = call.reason
        if reason is not None:
            stage = DropStage.QUEUED if item.unfinished else DropStage.COMPUTING
            info = call.model.info
            self._announcer.tell(lambda observer: observer.dropped(info, priority, reason, stage))

    def _end_call(self, call: DispatchedCall) -> None:
        self._calls.remove(call)
        self._wake()

    def _close_ticket(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._admission.close(ticket)
            self._announcer.tell_queue()
            self._wake()

    def _look(self) -> None:
        """Give an engine up when its batch hangs, and look again later."""
        if not self._up:
            return
        for engine, watchdog in enumerate(self._watchdogs):
            if not watchdog.hangs(self._worker.running.get(engine), time.monotonic()):
                continue
            logger.critical("a batch has taken far longer than it should: its engine is given up")
            if self._keeper is None:
                self._hung = True
                self._give_up()
                return
            self._keeper.kill(engine)
        assert self._loop is not None
        self._loop.call_later(self._watchdogs[0].interval, self._look)

    def _threads_ended(self, failed: bool) -> None:
        if self._hung:
            self._hung = False
            self._wake()
        else:
            self._give_up()

    def _tell_engine(self, engine: int, up: bool) -> None:
        (self._engines_up.add if up else self._engines_up.discard)(engine)
        self._announcer.tell(lambda observer: observer.engine_changed(engine, up))

    def _give_up(self) -> None:
        """No batch will be computed any more: tell all who wait."""
        self._up = False
        for engine in sorted(self._engines_up):
            self._tell_engine(engine, False)
        self._announcer.tell(lambda observer: observer.engines_ended())
        for call in list(self._calls):
            self._fail(call, Unavailable(_DEAD))
            self._items[call.ticket.priority] -= call.left
            self._admission.close(call.ticket)
            self._end_call(call)
        self._announcer.tell_queue()
        self._wake()

    async def _change(self, seconds: float | None = None) -> bool:
        """Wait until some work has ended; False if that takes longer."""
        future = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        done, _ = await asyncio.wait([future], timeout=seconds)
        return bool(done)

    def _wake(self) -> None:
        waiting, self._changed = self._changed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _count_queue(self) -> dict[PriorityClass, tuple[int, int]]:
        return {each: (self._admission.tokens(each), self._items[each]) for each in PriorityClass}


_DEAD = "the engine has stopped; the server must be restarted"
