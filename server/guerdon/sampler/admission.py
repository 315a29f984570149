"""How much may be asked for at once, and when to come back. Pure: the time is passed in.

Completions are what is bounded, running and waiting together: a call is accepted or shed
whole. One caller alone may hold all of the room; as soon as others hold or want some, it is
held to its share. vLLM draws in the order in which it is asked, so callers who hold equal parts
of the room get equal parts of what is drawn.

When there is no room, the time until there should be some follows from how fast completions
ended of late, behind all of its caller's that was sent away before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from guerdon.serving.access.identity import EVERYBODY, Caller
from guerdon.serving.errors import InvalidRequest, Overloaded
from guerdon.serving.waiting import UNKNOWN_RETRY_SECONDS, competition, promise_room

_MEMORY_SECONDS = 30.0
"""Seconds of work after which an old completion counts 1/e."""
_MOST_ACCOUNTS = 256
"""Callers that are remembered without need."""


@dataclass(slots=True, eq=False)
class Account:
    """What one caller holds."""

    caller: Caller
    completions: int = 0
    tokens: int = 0
    """The most that these completions may have."""
    slot: float = -math.inf
    """When the room that it has been promised so far should have been used."""

    def idle(self, now: float) -> bool:
        """Whether it holds and wants nothing."""
        return not self.completions and self.slot <= now


@dataclass(slots=True, eq=False)
class Ticket:
    """The room that one call holds. Only the admission writes to it."""

    account: Account
    tokens_each: int
    """The most that a completion may have."""
    completions: int
    """Held now."""


class Admission:
    """Keeps the books of what has been accepted. All calls come from one thread.

    Args:
        limit: most completions running and waiting.
    """

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self.held = 0
        """Completions accepted and not yet handed over."""
        self._pace = _Pace()
        self._accounts: dict[str, Account] = {}

    def reserve(
        self, completions: int, *, now: float, tokens_each: int = 1, caller: Caller = EVERYBODY
    ) -> Ticket:
        """Hold room for a call.

        Args:
            tokens_each: the most that a completion may have.
            caller: whose call it is.

        Raises:
            InvalidRequest: there is never so much room.
            Overloaded: there is no room now.
        """
        assert completions > 0
        if completions > self.limit:
            raise InvalidRequest(
                "items",
                f"they ask for {completions} completions, the server's limit is {self.limit}: "
                "send fewer at a time",
            )
        most = caller.max_tokens
        if most is not None and completions * tokens_each > most:
            raise InvalidRequest(
                "items",
                f"they ask for {completions} completions of up to {tokens_each} tokens, the "
                f"max_tokens of {caller.name!r} is {most}: send fewer at a time",
            )
        account = self._account(caller, now)
        excess, over = self.held + completions - self.limit, self._over(account, completions, now)
        if most is not None:
            tokens_over = account.tokens + completions * tokens_each - most
            over = max(over, math.ceil(tokens_over / tokens_each))
        if excess > 0 or over > 0:
            # What it must get done itself is drawn beside the completions of others.
            excess = max(excess, math.ceil(over * self._competition(account, now)))
            after = self._promise(account, excess, completions, now)
            raise Overloaded(
                f"{self.held} completions are running or waiting, {account.completions} of them "
                f"the caller's own; the limit is {self.limit}, shared among callers",
                retry_after=after,
            )
        self._pace.passed(now, busy=self.held > 0)
        ticket = Ticket(account, tokens_each, 0)
        self._add(ticket, completions)
        return ticket

    def finished(self, ticket: Ticket, *, now: float) -> None:
        """One completion has ended and was handed over."""
        self._pace.passed(now, busy=True)
        self._pace.done += 1
        self._give_back(ticket, 1)

    def close(self, ticket: Ticket, *, now: float) -> None:
        """Give back all that a ticket still holds: those ended early. Twice does nothing."""
        self._pace.passed(now, busy=self.held > 0)
        self._give_back(ticket, ticket.completions)

    def _give_back(self, ticket: Ticket, completions: int) -> None:
        assert 0 <= completions <= ticket.completions, "gave back more than was held"
        self._add(ticket, -completions)

    def _add(self, ticket: Ticket, completions: int) -> None:
        ticket.completions += completions
        ticket.account.completions += completions
        ticket.account.tokens += completions * ticket.tokens_each
        self.held += completions

    def _account(self, caller: Caller, now: float) -> Account:
        """The caller's account, with the limits that it has now."""
        if len(self._accounts) >= _MOST_ACCOUNTS:
            accounts = self._accounts.items()
            self._accounts = {key: each for key, each in accounts if not each.idle(now)}
        account = self._accounts.setdefault(caller.key, Account(caller))
        account.caller = caller
        return account

    def _competition(self, account: Account, now: float) -> float:
        return competition(account, self._accounts.values(), now)

    def _over(self, account: Account, completions: int, now: float) -> int:
        """The completions that a caller would hold beyond its share of the room.

        A call of one who holds nothing is never over: it might be larger than the share.
        """
        if not account.completions:
            return 0
        share = self.limit / self._competition(account, now)
        return max(0, math.ceil(account.completions + completions - share))

    def _promise(self, account: Account, excess: int, completions: int, now: float) -> float:
        """Seconds until there should be room for a call."""
        self._pace.passed(now, busy=True)
        each = self._pace.seconds_each
        if each is None:
            account.slot = max(account.slot, now + UNKNOWN_RETRY_SECONDS)
        everybody = self._accounts.values()
        return promise_room(
            account, everybody, excess=excess, size=completions, seconds_each=each, now=now
        )


class _Pace:
    """How fast completions end while there is work, over the last minute or so."""

    def __init__(self) -> None:
        self.done = 0.0
        self._busy = 0.0
        self._last: float | None = None

    def passed(self, now: float, *, busy: bool) -> None:
        """Time has passed since the last event; it counts if there was work."""
        seconds = 0.0 if self._last is None or not busy else max(0.0, now - self._last)
        self._last = now
        fade = math.exp(-seconds / _MEMORY_SECONDS)
        self.done *= fade
        self._busy = self._busy * fade + _MEMORY_SECONDS * (1 - fade)

    @property
    def seconds_each(self) -> float | None:
        """Seconds per completion; None before any has ended."""
        return self._busy / self.done if self.done > 0 else None
