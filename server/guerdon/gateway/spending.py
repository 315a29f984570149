"""How many tokens each caller may have drawn. Pure: the time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from guerdon.gateway.config import SpendingSettings
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import InvalidRequest, Overloaded
from guerdon.serving.waiting import MIN_RETRY_SECONDS

_MOST_ACCOUNTS = 1024
"""Callers that are remembered without need."""


@dataclass(slots=True)
class _Account:
    """What a caller has left."""

    left: float
    at: float
    """When it was last reckoned, on the clock of `now`."""


class Spending:
    """Keeps the books: each caller has so many tokens, which come back evenly.

    A call takes the most that it may spend when it begins, and gives back what it did not.
    """

    def __init__(self, settings: SpendingSettings) -> None:
        self._settings = settings
        self._accounts: dict[str, _Account] = {}

    def take(self, caller: Caller, tokens: int, now: float) -> None:
        """Take the most that a call may spend.

        Raises:
            InvalidRequest: it is more than the caller ever has.
            Overloaded: it is more than the caller has now; says when it will have it.
        """
        limit = self._limit(caller)
        if not limit:
            return
        if tokens > limit:
            raise InvalidRequest(
                "max_tokens",
                f"times best_of is {tokens} tokens, and {caller.name!r} may have {limit} drawn in "
                f"{self._settings.caller_seconds:g} s",
            )
        account = self._account(caller, limit, now)
        if tokens > account.left:
            wait = (tokens - account.left) * self._settings.caller_seconds / limit
            raise Overloaded(
                f"this call may take {tokens} tokens, and of the {limit} that {caller.name!r} may "
                f"have drawn in {self._settings.caller_seconds:g} s fewer are left",
                retry_after=max(wait, MIN_RETRY_SECONDS),
            )
        account.left -= tokens

    def give_back(self, caller: Caller, tokens: int, now: float) -> None:
        """Give back what a call did not spend."""
        limit = self._limit(caller)
        if limit:
            account = self._account(caller, limit, now)
            account.left = min(float(limit), account.left + tokens)

    def _limit(self, caller: Caller) -> int:
        return self._settings.callers.get(caller.name, self._settings.caller_tokens)

    def _account(self, caller: Caller, limit: int, now: float) -> _Account:
        """The caller's account, with what has come back until now."""
        rate = limit / self._settings.caller_seconds
        if caller.key not in self._accounts:
            self._forget_full(now)
        account = self._accounts.setdefault(caller.key, _Account(float(limit), now))
        account.left = min(float(limit), account.left + rate * (now - account.at))
        account.at = now
        return account

    def _forget_full(self, now: float) -> None:
        """Drop accounts of which nothing is spent any more, once there are many."""
        if len(self._accounts) >= _MOST_ACCOUNTS:
            old = now - self._settings.caller_seconds
            self._accounts = {k: a for k, a in self._accounts.items() if a.at > old}
