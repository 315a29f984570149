"""How much a judge's endpoint may be asked in a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from guerdon.reward.judge.settings import JudgeLimits
from guerdon.serving.errors import Overloaded


class Budget:
    """Requests and tokens that may be spent until the budget begins anew.

    Tokens are known when a reply has come, so the requests that are under way when they are used
    up still go beyond.

    Args:
        limits: of the judge.
        clock: seconds, steadily rising.
    """

    def __init__(self, limits: JudgeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_requests = _bound(limits.budget_requests)
        self._most_tokens = _bound(limits.budget_tokens)
        self._seconds = limits.budget_seconds
        self._clock = clock
        self._end = -math.inf
        self._requests = self._tokens = 0

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are bounded."""
        return self._most_tokens < math.inf

    def take(self) -> None:
        """Spend a request.

        Raises:
            Overloaded: the budget is spent; come back when it begins anew.
        """
        now = self._clock()
        if now >= self._end:
            self._end = now + self._seconds
            self._requests = self._tokens = 0
        if self._requests >= self._most_requests or self._tokens >= self._most_tokens:
            what = "requests" if self._requests >= self._most_requests else "tokens"
            raise Overloaded(f"the judge's budget of {what} is spent", retry_after=self._end - now)
        self._requests += 1

    def charge(self, tokens: int) -> None:
        """Spend a reply's tokens."""
        self._tokens += tokens


def _bound(most: int | None) -> float:
    return math.inf if most is None else most
