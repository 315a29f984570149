"""Which requests may wait, and when the others should come back.

Pure: no I/O, no threads, no clock. One bound, in tokens, holds for whatever is accepted and
not yet computed, the same whether it comes as one item or as many; a second one holds for
text whose tokens have not been counted yet. A request is admitted whole or shed whole.

    ticket = admission.reserve(…)     room by an estimate from the bytes, or `Overloaded`
    admission.settle(ticket, tokens)  the exact room, once it is tokenised
    admission.release(ticket, n)      as its items are computed or dropped
    admission.close(ticket)           whatever is left of it
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from guerdon.reward.limits import BatchLimits
from guerdon.reward.types import PriorityClass
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, Overloaded

MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 1.0
"""Before any batch has been measured."""
DUE_BUCKETS = 32
"""Steps of the patience in which queued work is summed up by when it is due."""


class TooLarge(InvalidRequest):
    """A request that has no room even when nothing else waits: never worth a retry.

    Args:
        field: path of the field that is too large.
        reason: what is too large, and the limit's name and value.
        limit: the name of the limit.
    """

    def __init__(self, field: str, reason: str, *, limit: str) -> None:
        super().__init__(field, reason)
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How much may wait.

    Args:
        max_queued_tokens: most tokens accepted and not yet computed.
        max_text_bytes: most bytes of text accepted and not yet tokenised.
        batch_fraction: part of both that the class BATCH may fill.
        bytes_per_token: bytes of text taken for one token until they are counted. Below what
            tokenisers reach on plain text (about 4), so that few requests turn out larger.
    """

    max_queued_tokens: int = 262_144
    max_text_bytes: int = 32 * 2**20
    batch_fraction: float = 0.8
    bytes_per_token: float = 3.0

    def __post_init__(self) -> None:
        if self.max_queued_tokens < 1:
            raise ValueError(f"max_queued_tokens must be at least 1, not {self.max_queued_tokens}")
        if self.max_text_bytes < 1:
            raise ValueError(f"max_text_bytes must be at least 1, not {self.max_text_bytes}")
        if not 0 < self.batch_fraction <= 1:
            raise ValueError(f"batch_fraction must be in (0, 1], not {self.batch_fraction}")
        if not 0 < self.bytes_per_token < math.inf:
            raise ValueError(f"bytes_per_token must be positive, not {self.bytes_per_token}")

    def fraction(self, priority: PriorityClass) -> float:
        """The part of the queue that a class may fill."""
        return 1.0 if priority is PriorityClass.ONLINE else self.batch_fraction


@dataclass(slots=True, eq=False)
class Ticket:
    """The room that one request holds. Only the admission writes to it."""

    model_name: str
    priority: PriorityClass
    deadline: float | None
    bucket: int
    tokens: int
    """Tokens held now."""
    text_bytes: int
    """Bytes held now: none once the tokens have been counted."""


class DrainRate:
    """How fast the engine gets through queued tokens, for each model name.

    A ratio of two sums that fade with the tokens computed, not with the number of batches:
    the small batches of a quiet hour say little of how fast full ones are.
    """

    def __init__(self, window_tokens: int) -> None:
        self._window = window_tokens
        self._sums: dict[str, tuple[float, float]] = {}

    def observe(self, model_name: str, tokens: int, seconds: float) -> None:
        """Take in one finished batch."""
        fade = math.exp(-tokens / self._window)
        old_tokens, old_seconds = self._sums.pop(model_name, (0.0, 0.0))
        # Put last: the names of models that are gone come first, and are forgotten.
        self._sums[model_name] = (old_tokens * fade + tokens, old_seconds * fade + seconds)
        while len(self._sums) > 256:
            del self._sums[next(iter(self._sums))]

    def seconds_per_token(self, model_name: str) -> float | None:
        """For a model, or for all of them where it has not been seen; None before any batch."""
        if model_name in self._sums:
            tokens, seconds = self._sums[model_name]
        else:
            tokens = sum(pair[0] for pair in self._sums.values())
            seconds = sum(pair[1] for pair in self._sums.values())
        return seconds / tokens if tokens > 0 else None


class Admission:
    """Keeps the books of what has been accepted. All calls come from one thread."""

    def __init__(self, queue: QueueLimits, batch: BatchLimits) -> None:
        self._queue = queue
        self._batch = batch
        self._rate = DrainRate(4 * batch.max_batch_tokens)
        self._width = batch.patience / DUE_BUCKETS
        self._text = dict.fromkeys(PriorityClass, 0)
        self._ledger = {priority: _Ledger() for priority in PriorityClass}
        self._slot = dict.fromkeys(PriorityClass, -math.inf)
        """When the room that has been promised so far will have been drained."""

    def tokens(self, priority: PriorityClass) -> int:
        """Tokens that a class holds, estimates included."""
        return self._ledger[priority].total

    def text_bytes(self, priority: PriorityClass) -> int:
        """Bytes of text that a class holds."""
        return self._text[priority]

    def reserve(
        self,
        *,
        model_name: str,
        priority: PriorityClass,
        text_bytes: int,
        deadline: float | None,
        now: float,
    ) -> Ticket:
        """Hold room for a request before its tokens are known.

        Args:
            text_bytes: of the prompts, each once, and of all responses; of a list of token
                ids, `bytes_per_token` for each.

        Raises:
            Overloaded: no room now, or none in time for its deadline.
            TooLarge: no room ever.
            DeadlinePassed: it comes too late.
        """
        assert text_bytes >= 0
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        fraction = self._queue.fraction(priority)
        if text_bytes > fraction * self._queue.max_text_bytes:
            limit = int(fraction * self._queue.max_text_bytes)
            reason = f"{text_bytes} bytes of text are more than max_text_bytes allows ({limit})"
            raise TooLarge("items", reason, limit="max_text_bytes")
        # An estimate proves nothing: what looks too large for the queue may fit when counted.
        estimate = math.ceil(text_bytes / self._queue.bytes_per_token)
        tokens = max(1, min(estimate, self._most_tokens(priority)))
        self._check_text(priority, text_bytes, tokens, model_name, now)
        self._check_tokens(priority, tokens, model_name, now)
        bucket = self._bucket(self._batch.due(deadline, now))
        self._check_wait(priority, bucket, deadline, now)
        ticket = Ticket(model_name, priority, deadline, bucket, tokens, text_bytes)
        self._text[priority] += text_bytes
        self._ledger[priority].add(ticket, tokens)
        return ticket

    def settle(self, ticket: Ticket, tokens: int, *, now: float) -> None:
        """Replace the estimate by what was counted. On an error nothing is held any more.

        Raises:
            Overloaded: it is larger than estimated, and there is no room for that.
            TooLarge: no room ever.
        """
        self.close(ticket)
        most = self._most_tokens(ticket.priority)
        if tokens > most:
            reason = f"{tokens} tokens are more than max_queued_tokens allows ({most})"
            raise TooLarge("items", reason, limit="max_queued_tokens")
        self._check_tokens(ticket.priority, tokens, ticket.model_name, now)
        ticket.tokens = tokens
        self._ledger[ticket.priority].add(ticket, tokens)

    def release(self, ticket: Ticket, tokens: int) -> None:
        """Give back the room of items that were computed or dropped."""
        assert 0 <= tokens <= ticket.tokens, "released more than was held"
        self._ledger[ticket.priority].add(ticket, -tokens)
        ticket.tokens -= tokens

    def close(self, ticket: Ticket) -> None:
        """Give back all that a ticket still holds. Closing twice does nothing."""
        self._text[ticket.priority] -= ticket.text_bytes
        ticket.text_bytes = 0
        self.release(ticket, ticket.tokens)

    def observe(self, model_name: str, tokens: int, seconds: float) -> None:
        """Learn from a finished batch.

        Args:
            tokens: as they were queued: without padding, prefixes once for each part.
        """
        self._rate.observe(model_name, tokens, seconds)

    def _most_tokens(self, priority: PriorityClass) -> int:
        return max(1, int(self._queue.fraction(priority) * self._queue.max_queued_tokens))

    def _bucket(self, due: float) -> int:
        return math.floor(due / self._width)

    def _check_text(
        self, priority: PriorityClass, size: int, tokens: int, model_name: str, now: float
    ) -> None:
        everyone = sum(self._text.values()) + size - self._queue.max_text_bytes
        share = self._queue.fraction(priority) * self._queue.max_text_bytes
        if max(everyone, self._text[priority] + size - share) > 0:
            reason = "too much text waits to be tokenised"
            raise Overloaded(
                reason, retry_after=self._promise(priority, 0, tokens, model_name, now)
            )

    def _check_tokens(
        self, priority: PriorityClass, tokens: int, model_name: str, now: float
    ) -> None:
        held = {each: ledger.total for each, ledger in self._ledger.items()}
        excess = sum(held.values()) + tokens - self._queue.max_queued_tokens
        own = held[priority] + tokens - self._most_tokens(priority)
        # The room of BATCH comes free only as BATCH work is done: ONLINE work goes before it,
        # and of what is computed meanwhile BATCH gets its share.
        if own > 0 and priority is PriorityClass.BATCH:
            share = self._batch.batch_share
            sooner = own / share if share else math.inf
            own = min(own + held[PriorityClass.ONLINE], math.ceil(min(sooner, 2**60)))
        if max(excess, own) > 0:
            after = self._promise(priority, max(excess, own), tokens, model_name, now)
            raise Overloaded("the queue is full", retry_after=after)

    def _promise(
        self, priority: PriorityClass, excess: int, tokens: int, model_name: str, now: float
    ) -> float:
        """Seconds until there should be room, behind all who were sent away before.

        Without their place in a line, everyone would be told of the same room and come back
        for it at the same moment.
        """
        each = self._rate.seconds_per_token(model_name)
        if each is None:
            return UNKNOWN_RETRY_SECONDS
        start = max(now + excess * each, self._slot[priority])
        # What is put off beyond the longest wait is not promised, so the line cannot grow.
        self._slot[priority] = min(start + tokens * each, now + MAX_RETRY_SECONDS)
        return min(max(start - now, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _check_wait(
        self, priority: PriorityClass, bucket: int, deadline: float | None, now: float
    ) -> None:
        if deadline is None:
            return
        slack = deadline - now
        wait = self._wait(priority, lambda ledger: ledger.by_model)
        if wait > slack:  # only then is it worth asking what is due before it
            wait = self._wait(priority, lambda ledger: ledger.due_until(bucket))
        if wait > slack:
            after = min(max(wait - slack, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
            reason = f"the queue takes {wait:.2f} s, longer than the {slack:.2f} s left"
            raise Overloaded(reason, retry_after=after)

    def _wait(self, priority: PriorityClass, ahead: Callable[[_Ledger], dict[str, int]]) -> float:
        """Seconds until work of this class that comes now should begin; 0 where not known."""
        tokens = ahead(self._ledger[priority])
        # All that fits a batch is computed together with what comes now.
        if sum(tokens.values()) <= self._batch.max_batch_tokens:
            return 0.0
        own, share = self._seconds(tokens), self._batch.batch_share
        online = priority is PriorityClass.ONLINE
        other = PriorityClass.BATCH if online else PriorityClass.ONLINE
        rest = self._seconds(self._ledger[other].by_model)
        if online:
            return own + min(rest, own * share / (1 - share))
        return own + min(rest, own * (1 - share) / share if share else math.inf)

    def _seconds(self, tokens: dict[str, int]) -> float:
        return sum(
            count * (self._rate.seconds_per_token(name) or 0.0) for name, count in tokens.items()
        )


class _Ledger:
    """What one class holds: in all, by model, and by when it is due."""

    def __init__(self) -> None:
        self.total = 0
        self.by_model: dict[str, int] = {}
        self._by_due: dict[int, dict[str, int]] = {}

    def add(self, ticket: Ticket, tokens: int) -> None:
        self.total += tokens
        _add(self.by_model, ticket.model_name, tokens)
        due = self._by_due.setdefault(ticket.bucket, {})
        _add(due, ticket.model_name, tokens)
        if not due:
            del self._by_due[ticket.bucket]

    def due_until(self, bucket: int) -> dict[str, int]:
        """Tokens by model that are due no later than a bucket.

        Work is due within the patience or overdue, so there are few buckets.
        """
        tokens: defaultdict[str, int] = defaultdict(int)
        for each, models in self._by_due.items():
            if each <= bucket:
                for name, count in models.items():
                    tokens[name] += count
        return tokens


def _add(counts: dict[str, int], name: str, tokens: int) -> None:
    count = counts.get(name, 0) + tokens
    if count:
        counts[name] = count
    else:
        counts.pop(name, None)
