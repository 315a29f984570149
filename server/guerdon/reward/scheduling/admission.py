"""Which requests may wait, and when the others should come back.

Pure: no I/O, no threads, no clock. One bound, in tokens, holds for whatever is accepted and
not yet computed, the same whether it comes as one item or as many; a second one holds for
text whose tokens have not been counted yet. A request is admitted whole or shed whole.

What one caller may hold of either follows from how much is free (dynamic thresholds,
Choudhury and Hahne 1998): alone, it may fill `caller_fraction` of it, and the more callers
there are the less each. So some room is left for those who come next, and who is over its
share is the first to be shed.

    ticket = admission.reserve(…)     room by an estimate from the bytes, or `Overloaded`
    admission.settle(ticket, tokens)  the exact room, once it is tokenised
    admission.release(ticket, n)      as its items are computed or dropped
    admission.close(ticket)           whatever is left of it
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from guerdon.reward.scheduling.ledgers import Account, Accounts
from guerdon.reward.scheduling.limits import MAX_NAMES, BatchLimits, BatchTiming, Pace, QueueLimits
from guerdon.reward.types import PriorityClass
from guerdon.serving.access.identity import EVERYBODY, Caller
from guerdon.serving.errors import DeadlinePassed, Overloaded, TooLarge
from guerdon.serving.waiting import competition, promise_room

WAIT_MARGIN = 1.5
"""How much longer than foreseen a call is taken to last when it is held to its deadline. With
less, more calls are computed in vain at overload than are shed in vain below it (simulated)."""
_MOST_TOKENS = 2.0**60
"""More than any queue holds: where a quotient has no bound of its own, it is cut to this."""
DUE_BUCKETS = 32
"""Steps of the patience in which queued work is summed up by when it is due."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The room that one request holds, given back when its context is left.

    Only the admission writes to it.
    """

    model_name: str
    priority: PriorityClass
    account: Account
    deadline: float | None
    bucket: int
    tokens: int
    """Tokens held now."""
    text_bytes: int
    """Bytes held now: none once the tokens have been counted."""
    on_close: Callable[[Ticket], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the room back, unless the engine was given the work. Closing twice does nothing."""
        self.on_close(self)


class Admission:
    """Keeps the books of what has been accepted. All calls come from one thread."""

    def __init__(self, queue: QueueLimits, batch: BatchLimits) -> None:
        self._queue = queue
        self._batch = batch
        self._pace = Pace(4 * batch.max_batch_tokens)
        self._width = batch.patience / DUE_BUCKETS
        self._accounts = {priority: Accounts() for priority in PriorityClass}
        self._since = -math.inf
        """When the batch that is computed now began, as far as can be told from here."""
        self._last_seconds = dict.fromkeys(PriorityClass, 0.0)
        """How long each class may have to wait for the batch that is computed now: as long as the
        last one took, or a full one of its pace where that was one response that is longer."""
        self._preemptible: set[str] = set()
        """Models whose BATCH batches stand aside for ONLINE work."""

    def tokens(self, priority: PriorityClass) -> int:
        """Tokens that a class holds, estimates included."""
        return self._accounts[priority].ledger.total

    def text_bytes(self, priority: PriorityClass) -> int:
        """Bytes of text that a class holds."""
        return self._accounts[priority].text_bytes

    def reserve(
        self,
        *,
        model_name: str,
        priority: PriorityClass,
        text_bytes: int,
        deadline: float | None,
        now: float,
        caller: Caller = EVERYBODY,
        most: int | None = None,
        on_close: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Hold room for a request before its tokens are known.

        Args:
            text_bytes: of the prompts, each once, and of all responses; of a list of token
                ids, `bytes_per_token` for each.
            caller: whose request it is.
            most: tokens beyond which it is refused once they are counted, if that is known.
            on_close: closes the ticket when its context is left; `close` unless given.

        Raises:
            Overloaded: no room now, or none in time for its deadline.
            TooLarge: no room ever.
            DeadlinePassed: it comes too late.
        """
        assert text_bytes >= 0
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        limit = self._queue.most_text_bytes(priority)
        if text_bytes > limit:
            reason = (
                f"{text_bytes} bytes of text are more than the queue takes of one caller ({limit}, "
                "by max_text_bytes and caller_fraction)"
            )
            raise TooLarge("items", reason)
        # An estimate proves nothing: what looks too large for the queue may fit when counted.
        estimate = text_bytes / self._queue.bytes_per_token
        account = self._accounts[priority].find(caller, now)
        bounds = (self._queue.most_tokens(priority), account.caller.max_tokens, most)
        tokens = max(1, math.ceil(min([estimate, *(each for each in bounds if each is not None)])))
        bucket = self._bucket(self._batch.due(deadline, now))
        ticket = Ticket(
            model_name,
            priority,
            account,
            deadline,
            bucket,
            tokens,
            text_bytes,
            on_close or self.close,
        )
        self._check_text(ticket, now)
        self._check_tokens(ticket, tokens, now)
        self._check_wait(ticket, tokens, now)
        self._accounts[priority].add_text(account, text_bytes)
        self._add(ticket, tokens)
        return ticket

    def settle(self, ticket: Ticket, tokens: int, *, now: float) -> None:
        """Replace the estimate by what was counted. On an error nothing is held any more.

        Raises:
            Overloaded: it is larger than estimated, and there is no room for that.
            TooLarge: no room ever.
        """
        self.close(ticket)
        most, by, caller = self._queue.most_tokens(ticket.priority), "", ticket.account.caller
        if caller.max_tokens is not None and caller.max_tokens < most:
            most, by = caller.max_tokens, f"the max_tokens of {caller.name!r}"
        if tokens > most:
            by = by or "max_queued_tokens and caller_fraction"
            reason = (
                f"{tokens} tokens are more than the queue takes of one caller ({most}, by {by})"
            )
            raise TooLarge("items", reason)
        self._check_tokens(ticket, tokens, now)
        if not self._busy():
            self._since = now
        ticket.tokens = tokens
        self._add(ticket, tokens)

    def release(self, ticket: Ticket, tokens: int) -> None:
        """Give back the room of items that were computed or dropped."""
        assert 0 <= tokens <= ticket.tokens, "released more than was held"
        self._add(ticket, -tokens)
        ticket.tokens -= tokens

    def close(self, ticket: Ticket) -> None:
        """Give back all that a ticket still holds. Closing twice does nothing."""
        self._accounts[ticket.priority].add_text(ticket.account, -ticket.text_bytes)
        ticket.text_bytes = 0
        self.release(ticket, ticket.tokens)

    def observe(
        self,
        model_name: str,
        tokens: int,
        seconds: float,
        *,
        now: float,
        preemptible: bool = False,
        model_preemptible: bool = False,
    ) -> None:
        """Learn from a finished batch.

        Args:
            tokens: as they were queued: without padding, prefixes once for each part.
            preemptible: whether it would have stood aside for ONLINE work.
            model_preemptible: whether any BATCH batch of the model would.
        """
        self._pace.observe(model_name, tokens, seconds)
        self._since = now
        full = seconds * min(1.0, self._batch.max_batch_tokens / max(tokens, 1))
        self._last_seconds[PriorityClass.BATCH] = full
        self._last_seconds[PriorityClass.ONLINE] = 0.0 if preemptible else full
        self._preemptible.discard(model_name)
        if model_preemptible and len(self._preemptible) < MAX_NAMES:
            self._preemptible.add(model_name)

    def _add(self, ticket: Ticket, tokens: int) -> None:
        accounts = self._accounts[ticket.priority]
        accounts.add(ticket.account, ticket.model_name, ticket.bucket, tokens)

    def _busy(self) -> bool:
        return any(accounts.ledger.total for accounts in self._accounts.values())

    def _bucket(self, due: float) -> int:
        return math.floor(due / self._width)

    def _check_text(self, ticket: Ticket, now: float) -> None:
        priority, size, account = ticket.priority, ticket.text_bytes, ticket.account
        everyone = sum(accounts.text_bytes for accounts in self._accounts.values())
        share = int(self._queue.fraction(priority) * self._queue.max_text_bytes)
        own = self._accounts[priority].text_bytes
        room = min(self._queue.max_text_bytes - everyone, share - own)
        over = self._queue.over_share(account.text_bytes, size, room, self._weight(ticket))
        if size > room or over:
            reason = "too much text waits to be tokenised"
            raise Overloaded(reason, retry_after=self._promise(ticket, 0, ticket.tokens, now))

    def _check_tokens(self, ticket: Ticket, tokens: int, now: float) -> None:
        priority, account = ticket.priority, ticket.account
        everyone = sum(accounts.ledger.total for accounts in self._accounts.values())
        free = self._queue.max_queued_tokens - everyone
        held = self._accounts[priority].ledger.total
        of_class = int(self._queue.fraction(priority) * self._queue.max_queued_tokens) - held
        room = min(free, of_class)
        own = account.ledger.total
        over = self._queue.over_share(own, tokens, room, self._weight(ticket))
        if account.caller.max_tokens is not None:
            mine = sum(each.held(account.caller.key) for each in self._accounts.values())
            over = max(over, mine + tokens - account.caller.max_tokens)
        if tokens > room or over > 0:
            # A caller's room comes free as its own work is done, which shares with others'.
            over = min(over * self._competition(ticket, now), over + held - own) if over > 0 else 0
            after = max(tokens - free, self._until_done(priority, max(tokens - of_class, over)))
            reason = "its caller holds its share of the queue" if over else "the queue is full"
            raise Overloaded(reason, retry_after=self._promise(ticket, after, tokens, now))

    def _until_done(self, priority: PriorityClass, tokens: float) -> float:
        """Tokens that are computed until so many of a class are done.

        ONLINE work goes before BATCH, which gets its share of what is computed meanwhile.
        """
        if priority is PriorityClass.ONLINE or tokens <= 0:
            return tokens
        share = self._batch.batch_share
        sooner = tokens / share if share else math.inf
        online = self._accounts[PriorityClass.ONLINE].ledger.total
        return min(tokens + online, math.ceil(min(sooner, _MOST_TOKENS)))

    def _weight(self, ticket: Ticket) -> float:
        """A caller's share over the largest of those who hold something of its class."""
        own = ticket.account.caller.share
        accounts = self._accounts[ticket.priority].others(ticket.account)
        return own / max([own, *(each.caller.share for each in accounts if each.ledger.total)])

    def _competition(self, ticket: Ticket, now: float) -> float:
        account = ticket.account
        return competition(account, self._accounts[ticket.priority].others(account), now)

    def _promise(self, ticket: Ticket, excess: float, tokens: int, now: float) -> float:
        """Seconds until there should be room for a request."""
        return promise_room(
            ticket.account,
            self._accounts[ticket.priority].others(ticket.account),
            excess=excess,
            size=tokens,
            seconds_each=self._seconds_per_token(ticket.model_name),
            now=now,
            deadline=ticket.deadline,
        )

    def _check_wait(self, ticket: Ticket, tokens: int, now: float) -> None:
        """Refuse what would be done too late.

        An engine without work is always tried: so a pace that was measured badly, or long
        ago, is measured again.
        """
        if ticket.deadline is None or not self._busy():
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
        ahead = self._ahead(ticket, tokens)
        timing = self._timing(ticket.model_name)
        # What is computed now is a batch of its own, with an overhead of its own.
        own = self._seconds(ahead) + (timing.overhead if timing else 0.0)
        other = (
            PriorityClass.BATCH
            if ticket.priority is PriorityClass.ONLINE
            else (PriorityClass.ONLINE)
        )
        held = self._accounts[ticket.priority].ledger.by_model
        later = {name: max(0.0, count - ahead[name]) for name, count in held.items()}
        model = ticket.model_name
        later[model] = max(0.0, held.get(model, 0) + tokens - ahead[model])
        rest = self._accounts[other].ledger.by_model
        share = self._batch.batch_share
        if other is PriorityClass.BATCH:
            crossing = own * share / (1 - share)
        else:
            crossing = own * (1 - share) / share if share else math.inf
        # One batch of what is due later, or of the other class, may be in the engine's hands.
        online = ticket.priority is PriorityClass.ONLINE
        stays = {name: n for name, n in rest.items() if not (online and name in self._preemptible)}
        last = self._last_seconds[ticket.priority]
        block = max(self._longest_batch(later), self._longest_batch(stays), last)
        late = min(self._seconds(rest), crossing) + block
        all_the_rest = self._seconds(rest) + self._seconds(later)
        longest = max(block, self._longest_batch(ahead))
        running = min(max(now - self._since, 0.0), longest)
        alone = self._seconds({ticket.model_name: tokens})
        return max(own + min(late, all_the_rest) - running, alone)

    def _ahead(self, ticket: Ticket, tokens: int) -> defaultdict[str, float]:
        """Tokens by model that are computed before work that comes now, and with it.

        Of its own caller, what is due no later. Of each other one of its class, as much as its
        share comes to meanwhile, if it holds so much.
        """
        account = ticket.account
        ahead = account.ledger.due_until(ticket.bucket)
        ahead[ticket.model_name] += tokens
        mine = sum(ahead.values()) / account.caller.share
        for each in self._accounts[ticket.priority].others(account):
            if each.ledger.total:
                part = min(1.0, mine * each.caller.share / each.ledger.total)
                for name, count in each.ledger.by_model.items():
                    ahead[name] += part * count
        return ahead

    def _timing(self, model_name: str) -> BatchTiming | None:
        return self._pace.timing(model_name) or self._pace.overall_timing()

    def _seconds_per_token(self, model_name: str) -> float | None:
        """Seconds for each token of full batches; None before any batch."""
        timing = self._timing(model_name)
        if timing is None:
            return None
        return timing.overhead / self._batch.timed_tokens(timing) + timing.per_token

    def _seconds(self, tokens: Mapping[str, float]) -> float:
        """Seconds to compute so many tokens of each model."""
        return sum(timing.seconds(n, most) for timing, n, most in self._timed(tokens))

    def _longest_batch(self, tokens: Mapping[str, float]) -> float:
        timed = self._timed(tokens)
        return max((timing.seconds(min(n, most), most) for timing, n, most in timed), default=0.0)

    def _timed(self, tokens: Mapping[str, float]) -> Iterator[tuple[BatchTiming, float, int]]:
        """Timing, tokens and tokens of a batch of each model."""
        for name, count in tokens.items():
            if timing := self._timing(name):
                yield timing, count, self._batch.timed_tokens(timing)
