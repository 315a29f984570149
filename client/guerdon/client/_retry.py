"""Deadlines, and trying again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from guerdon.client.config import LONGEST, SHORTEST, Clock, Retry, check_number
from guerdon.client.errors import DeadlineExceeded, GuerdonError, Overloaded, Unavailable
from guerdon.together import cancel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over, on the clock's time."""

    clock: Clock
    timeout: float | None
    at: float | None

    @classmethod
    def after(cls, clock: Clock, timeout: float | None) -> Deadline:
        """The deadline `timeout` seconds from now.

        Raises:
            InvalidArgument: the time is no positive number of seconds.
        """
        if timeout is None:
            return cls(clock, None, None)
        check_number("timeout", timeout, SHORTEST, LONGEST, instead="None for no limit")
        return cls(clock, timeout, clock.now() + timeout)

    def remaining(self) -> float | None:
        """Seconds left; None without a limit; may be negative."""
        return None if self.at is None else self.at - self.clock.now()

    def expired(self, last: GuerdonError | None = None) -> DeadlineExceeded:
        """The error to raise when it has passed.

        Args:
            last: what went wrong before.
        """
        why = f"; the last error was: {last.message}" if last is not None else ""
        return DeadlineExceeded(f"no answer within {self.timeout:g} seconds{why}")


class Backoff:
    """The waits of one call, or of one item of a stream."""

    def __init__(self, policy: Retry, clock: Clock, deadline: Deadline) -> None:
        self._policy = policy
        self._clock = clock
        self._deadline = deadline
        self._failures = 0
        self._overloads = 0

    def reset(self) -> None:
        """Forget earlier failures: there was progress."""
        self._failures = self._overloads = 0

    def next(self, error: GuerdonError) -> float | None:
        """Seconds to wait before the next try; None when there must be none."""
        policy = self._policy
        if not is_transient(error):
            return None
        if isinstance(error, Overloaded):
            self._overloads += 1
            most = min(policy.overload_attempts, 1) if policy.attempts == 1 else None
            tried, most = self._overloads, most or policy.overload_attempts
        else:
            self._failures += 1
            tried, most = self._failures, policy.attempts
        if tried >= most:
            return None
        ceiling = min(policy.maximum, policy.initial * policy.multiplier ** min(tried - 1, 64))
        named = error.retry_after or 0.0
        remaining = self._deadline.remaining()
        if remaining is not None:
            last_try = min(policy.initial, 0.1 * (self._deadline.timeout or 0.0))
            left = remaining - named - last_try
            if left <= 0:
                return None
            ceiling = min(ceiling, left)
        return named + self._clock.uniform(0.0, ceiling)


def is_transient(error: GuerdonError) -> bool:
    """Whether the same request may succeed later, and is safe to send again."""
    if isinstance(error, Overloaded):
        return error.retry_after is not None
    return isinstance(error, Unavailable)


async def retrying(
    attempt: Callable[[float | None], Awaitable[T]],
    policy: Retry,
    clock: Clock,
    deadline: Deadline,
    waiting: Callable[[GuerdonError, Deadline], None] = lambda error, deadline: None,
) -> T:
    """What `attempt` returns, tried as long as the deadline and the policy allow.

    Args:
        attempt: makes the call; takes the seconds it may last, raises `GuerdonError`.
        waiting: told of an error before the wait for the next try.

    Raises:
        GuerdonError: it failed for good; the last error.
    """
    backoff = Backoff(policy, clock, deadline)
    last: GuerdonError | None = None
    while True:
        remaining = deadline.remaining()
        if remaining is not None and remaining <= 0:
            raise deadline.expired(last) from last
        try:
            return await attempt(remaining)
        except GuerdonError as error:
            delay = backoff.next(error)
            if delay is None:
                if isinstance(error, DeadlineExceeded) and last is not None:
                    raise deadline.expired(last) from error
                raise
            last = error
        waiting(last, deadline)
        await clock.sleep(delay)


async def hedged(ask: Callable[[], Awaitable[T]], after: float, clock: Clock) -> T:
    """The first answer to a request that is sent a second time when the first is late.

    Args:
        ask: sends the request; safe to do twice at once.
        after: seconds after which the answer is late.

    Raises:
        GuerdonError: the first error that no other try can mend; else the last one.
    """
    timer = asyncio.ensure_future(clock.sleep(after))
    asked = [asyncio.ensure_future(ask())]
    try:
        await asyncio.wait([timer, *asked], return_when=asyncio.FIRST_COMPLETED)
        if not asked[0].done():
            asked.append(asyncio.ensure_future(ask()))
        waiting = set(asked)
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                error = each.exception()
                if not waiting or not isinstance(error, GuerdonError) or not is_transient(error):
                    return each.result()
    finally:
        await cancel([timer, *asked])
