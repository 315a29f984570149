"""What callers hold: what admission goes by. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from guerdon.serving.access.identity import EVERYBODY, Caller

MAX_CALLERS = 256
"""Callers that are told apart at a time in a class; all beyond are one caller together."""


class Ledger:
    """Tokens in all, by model, and by when they are due."""

    def __init__(self) -> None:
        self.total = 0
        self.by_model: dict[str, int] = {}
        self._by_due: dict[int, dict[str, int]] = {}

    def add(self, model_name: str, bucket: int, tokens: int) -> None:
        """Note tokens of a model that are due in a bucket; a negative number takes them away."""
        self.total += tokens
        _add(self.by_model, model_name, tokens)
        due = self._by_due.setdefault(bucket, {})
        _add(due, model_name, tokens)
        if not due:
            del self._by_due[bucket]

    def due_until(self, bucket: int) -> defaultdict[str, float]:
        """Tokens by model that are due no later than a bucket.

        Work is due within the patience or overdue, so there are few buckets.
        """
        tokens: defaultdict[str, float] = defaultdict(float)
        for each, models in self._by_due.items():
            if each <= bucket:
                for name, count in models.items():
                    tokens[name] += count
        return tokens


@dataclass(slots=True, eq=False)
class Account:
    """What one caller holds of one class."""

    caller: Caller
    ledger: Ledger = field(default_factory=Ledger)
    text_bytes: int = 0
    slot: float = -math.inf
    """When the room that it has been promised so far will have been drained."""

    def idle(self, now: float) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.ledger.total and not self.text_bytes and self.slot <= now


class Accounts:
    """The books of one class."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        """What all callers hold together."""
        self.text_bytes = 0
        self._by_caller: dict[str, Account] = {}

    def find(self, caller: Caller, now: float) -> Account:
        """The account of a caller; a new one if there was none and they are not too many."""
        account = self._by_caller.get(caller.key)
        if account is None:
            if len(self._by_caller) >= MAX_CALLERS:
                for key in [key for key, each in self._by_caller.items() if each.idle(now)]:
                    del self._by_caller[key]
            if len(self._by_caller) >= MAX_CALLERS:
                caller = EVERYBODY
            account = self._by_caller.setdefault(caller.key, Account(caller))
        else:
            account.caller = caller  # its share may have been set anew
        return account

    def held(self, key: str) -> int:
        """Tokens that a caller holds."""
        account = self._by_caller.get(key)
        return account.ledger.total if account is not None else 0

    def others(self, account: Account) -> Iterator[Account]:
        """The accounts of other callers."""
        return (each for each in self._by_caller.values() if each is not account)

    def add(self, account: Account, model_name: str, bucket: int, tokens: int) -> None:
        """Note tokens of a caller."""
        self.ledger.add(model_name, bucket, tokens)
        account.ledger.add(model_name, bucket, tokens)

    def add_text(self, account: Account, text_bytes: int) -> None:
        """Note text of a caller."""
        self.text_bytes += text_bytes
        account.text_bytes += text_bytes


def _add(counts: dict[str, int], name: str, tokens: int) -> None:
    count = counts.get(name, 0) + tokens
    if count:
        counts[name] = count
    else:
        counts.pop(name, None)
