"""Deadlines, and trying again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from guerdon.client.config import Clock, Retry
from guerdon.client.errors import (
    DeadlineExceeded,
    GuerdonError,
    Overloaded,
    Unavailable,
    invalid,
)

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
            InvalidArgument: the time is not positive.
        """
        if timeout is None:
            return cls(clock, None, None)
        if not timeout > 0:
            raise invalid("timeout", f"is {timeout}, it must be positive, or None for no limit")
        return cls(clock, timeout, clock.now() + timeout)

    def remaining(self) -> float | None:
        """Seconds left; None without a limit; may be negative."""
        return None if self.at is None else self.at - self.clock.now()

    def expired(self) -> DeadlineExceeded:
        """The error to raise when it has passed."""
        return DeadlineExceeded(f"no answer within {self.timeout:g} seconds")


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
        delay = self._clock.uniform(0.0, ceiling) + (error.retry_after or 0.0)
        remaining = self._deadline.remaining()
        return delay if remaining is None or delay < remaining else None


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
) -> T:
    """What `attempt` returns, tried as often as the policy allows.

    Args:
        attempt: makes the call; takes the seconds it may last, raises `GuerdonError`.

    Raises:
        GuerdonError: it failed for good; the last error.
    """
    backoff = Backoff(policy, clock, deadline)
    last: GuerdonError | None = None
    while True:
        remaining = deadline.remaining()
        if remaining is not None and remaining <= 0:
            raise deadline.expired() from last
        try:
            return await attempt(remaining)
        except GuerdonError as error:
            delay = backoff.next(error)
            if delay is None:
                raise
            last = error
        await clock.sleep(delay)
