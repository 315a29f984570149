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
from dataclasses import dataclass

from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.scheduling.pace import Fit, Pace
from guerdon.reward.types import PriorityClass
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, Overloaded

MIN_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 1.0
"""Before any batch has been measured."""
WAIT_MARGIN = 1.5
"""How much longer than foreseen a call is taken to last when it is held to its deadline. With
less, more calls are computed in vain at overload than are shed in vain below it (simulated)."""
_MOST_TOKENS = 2.0**60
"""More than any queue holds: where a quotient has no bound of its own, it is cut to this."""
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


class Admission:
    """Keeps the books of what has been accepted. All calls come from one thread."""

    def __init__(self, queue: QueueLimits, batch: BatchLimits) -> None:
        self._queue = queue
        self._batch = batch
        self._pace = Pace(4 * batch.max_batch_tokens)
        self._width = batch.patience / DUE_BUCKETS
        self._text = dict.fromkeys(PriorityClass, 0)
        self._ledger = {priority: _Ledger() for priority in PriorityClass}
        self._slot = dict.fromkeys(PriorityClass, -math.inf)
        """When the room that has been promised so far will have been drained."""
        self._since = -math.inf
        """When the batch that is computed now began, as far as can be told from here."""

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
        estimate = text_bytes / self._queue.bytes_per_token
        tokens = max(1, math.ceil(min(estimate, self._most_tokens(priority))))
        bucket = self._bucket(self._batch.due(deadline, now))
        ticket = Ticket(model_name, priority, deadline, bucket, tokens, text_bytes)
        self._check_text(ticket, now)
        self._check_tokens(ticket, tokens, now)
        self._check_wait(ticket, tokens, now)
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
        self._check_tokens(ticket, tokens, now)
        if not any(ledger.total for ledger in self._ledger.values()):
            self._since = now
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

    def observe(self, model_name: str, tokens: int, seconds: float, *, now: float) -> None:
        """Learn from a finished batch.

        Args:
            tokens: as they were queued: without padding, prefixes once for each part.
        """
        self._pace.observe(model_name, tokens, seconds)
        self._since = now

    def _most_tokens(self, priority: PriorityClass) -> int:
        return max(1, int(self._queue.fraction(priority) * self._queue.max_queued_tokens))

    def _bucket(self, due: float) -> int:
        return math.floor(due / self._width)

    def _check_text(self, ticket: Ticket, now: float) -> None:
        priority, size = ticket.priority, ticket.text_bytes
        everyone = sum(self._text.values()) + size - self._queue.max_text_bytes
        share = self._queue.fraction(priority) * self._queue.max_text_bytes
        if max(everyone, self._text[priority] + size - share) > 0:
            reason = "too much text waits to be tokenised"
            raise Overloaded(reason, retry_after=self._promise(ticket, 0, ticket.tokens, now))

    def _check_tokens(self, ticket: Ticket, tokens: int, now: float) -> None:
        priority = ticket.priority
        held = {each: ledger.total for each, ledger in self._ledger.items()}
        excess = sum(held.values()) + tokens - self._queue.max_queued_tokens
        own = held[priority] + tokens - self._most_tokens(priority)
        # The room of BATCH comes free only as BATCH work is done: ONLINE work goes before it,
        # and of what is computed meanwhile BATCH gets its share.
        if own > 0 and priority is PriorityClass.BATCH:
            share = self._batch.batch_share
            sooner = own / share if share else math.inf
            own = min(own + held[PriorityClass.ONLINE], math.ceil(min(sooner, _MOST_TOKENS)))
        if max(excess, own) > 0:
            after = self._promise(ticket, max(excess, own), tokens, now)
            raise Overloaded("the queue is full", retry_after=after)

    def _promise(self, ticket: Ticket, excess: int, tokens: int, now: float) -> float:
        """Seconds until there should be room, behind all who were sent away before.

        Without their place in a line, everyone would be told of the same room and come back
        for it at the same moment. Who cannot come back before its deadline takes no place.
        """
        each = self._seconds_per_token(ticket.model_name)
        if each is None:
            return UNKNOWN_RETRY_SECONDS
        start = max(now + excess * each, self._slot[ticket.priority])
        if ticket.deadline is None or start < ticket.deadline:
            # What is put off beyond the longest wait is not promised: the line cannot grow.
            self._slot[ticket.priority] = min(start + tokens * each, now + MAX_RETRY_SECONDS)
        return min(max(start - now, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _check_wait(self, ticket: Ticket, tokens: int, now: float) -> None:
        """Refuse what would be done too late.

        An engine without work is always tried: so a pace that was measured badly, or long
        ago, is measured again.
        """
        if ticket.deadline is None or not any(ledger.total for ledger in self._ledger.values()):
            return
        slack = ticket.deadline - now
        finish = self._finish(ticket, tokens, now)
        late = finish - slack / WAIT_MARGIN
        if late > 0:
            each = self._seconds_per_token(ticket.model_name) or math.inf
            excess = math.ceil(min(late / each, _MOST_TOKENS))
            after = self._promise(ticket, excess, tokens, now)
            reason = f"it would take {finish:.2f} s, too long for the {slack:.2f} s left"
            raise Overloaded(reason, retry_after=after)

    def _finish(self, ticket: Ticket, tokens: int, now: float) -> float:
        """Seconds until work that comes now should be done; 0 where nothing was measured."""
        ahead = self._ledger[ticket.priority].due_until(ticket.bucket)
        ahead[ticket.model_name] += tokens
        fit = self._fit(ticket.model_name)
        # What is computed now is a batch of its own, with an overhead of its own.
        own = self._seconds(ahead) + (fit.overhead if fit else 0.0)
        other = (
            PriorityClass.BATCH
            if ticket.priority is PriorityClass.ONLINE
            else (PriorityClass.ONLINE)
        )
        later = dict(self._ledger[ticket.priority].by_model)
        for name, count in ahead.items():
            _add(later, name, -count)
        _add(later, ticket.model_name, tokens)
        rest = self._ledger[other].by_model
        share = self._batch.batch_share
        if other is PriorityClass.BATCH:
            crossing = own * share / (1 - share)
        else:
            crossing = own * (1 - share) / share if share else math.inf
        # One batch of what is due later, or of the other class, may be in the engine's hands.
        block = max(self._longest_batch(later), self._longest_batch(rest))
        late = min(self._seconds(rest), crossing) + block
        all_the_rest = self._seconds(rest) + self._seconds(later)
        running = min(max(now - self._since, 0.0), max(block, self._longest_batch(ahead)))
        alone = self._seconds({ticket.model_name: tokens})
        return max(own + min(late, all_the_rest) - running, alone)

    def _fit(self, model_name: str) -> Fit | None:
        return self._pace.fit(model_name) or self._pace.fit_all()

    def _seconds_per_token(self, model_name: str) -> float | None:
        """While full batches are computed; None before any batch."""
        fit = self._fit(model_name)
        return fit.overhead / self._batch.timed_tokens(fit) + fit.per_token if fit else None

    def _seconds(self, tokens: dict[str, int]) -> float:
        """To compute so many tokens of each model."""
        fits = ((count, self._fit(name)) for name, count in tokens.items())
        return sum(fit.seconds(n, self._batch.timed_tokens(fit)) for n, fit in fits if fit)

    def _longest_batch(self, tokens: dict[str, int]) -> float:
        fits = ((count, self._fit(name)) for name, count in tokens.items())
        sizes = ((fit, n, self._batch.timed_tokens(fit)) for n, fit in fits if fit)
        return max((fit.seconds(min(n, most), most) for fit, n, most in sizes), default=0.0)


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

    def due_until(self, bucket: int) -> defaultdict[str, int]:
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
