"""What may wait and what a batch may hold: limits that are set, and that are learnt.

How long a batch takes is learnt as a line fitted to the batches that have finished. Pure.
"""

from __future__ import annotations

import logging
import math
import operator
from dataclasses import dataclass, field
from typing import NamedTuple

from guerdon.reward.types import PriorityClass

MAX_NAMES = 256
"""Names that are remembered: models come and go."""
_MEMORY_BATCHES = 64
"""Batches after which an old one counts no more, however small they are."""
_PRIOR = 0.05
"""Spread of sizes (variance over squared mean) from which on the fitted line is believed
more than what is assumed of batches of one size."""
_PROPORTIONAL_TOKENS = 512
"""Batches of one size tell nothing of others: from this size on their time is taken to be
proportional to the tokens, and the smaller they are the more of it for overhead."""


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """A batch of n tokens takes `overhead + per_token * n` seconds."""

    overhead: float
    per_token: float
    size: float
    """Tokens of the batches that this was learnt from: a mean by token."""

    def seconds(self, tokens: float, batch_tokens: int) -> float:
        """The time of so many queued tokens, computed in batches of up to `batch_tokens`."""
        if tokens <= 0:
            return 0.0
        return self.overhead * max(1.0, tokens / batch_tokens) + self.per_token * tokens

    def tokens(self, seconds: float) -> float:
        """The tokens of a batch that takes so long; infinite where tokens take no time."""
        return (seconds - self.overhead) / self.per_token if self.per_token > 0 else math.inf


class Pace:
    """Learns from finished batches, by name, and forgets what is old.

    What was seen fades with the tokens computed since, for the many small batches of a quiet
    hour say little of how fast full ones are, and with the number of batches, so that one
    that was slow for a reason of its own (the first, say) is forgotten all the same.

    Args:
        window_tokens: tokens after which an old batch counts 1/e.
    """

    def __init__(self, window_tokens: float) -> None:
        self._window = window_tokens
        self._sums: dict[str, _Sums] = {}

    def observe(self, name: str, tokens: int, seconds: float) -> None:
        """Take in one finished batch."""
        tokens = max(tokens, 1)  # what needs no tokens still takes time
        # Put last: the names of models that are gone come first, and are forgotten.
        sums = self._sums.pop(name, _Sums())
        sums = sums.faded(math.exp(-max(tokens / self._window, 1 / _MEMORY_BATCHES)))
        self._sums[name] = sums.plus(_Sums.one(tokens, seconds))
        while len(self._sums) > MAX_NAMES:
            del self._sums[next(iter(self._sums))]

    def timing(self, name: str) -> BatchTiming | None:
        """The line of a name, or None before its first batch."""
        sums = self._sums.get(name)
        return sums.fit() if sums is not None else None

    def overall_timing(self) -> BatchTiming | None:
        """The line of all names together, for one that has not been seen; None before any batch."""
        total = _Sums()
        for sums in self._sums.values():
            total = total.plus(sums)
        return total.fit() if total.batches else None


class _Sums(NamedTuple):
    """Sums over batches, enough for a weighted least-squares line of seconds over tokens."""

    batches: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    @classmethod
    def one(cls, tokens: int, seconds: float) -> _Sums:
        return cls(1.0, tokens, seconds, float(tokens * tokens), tokens * seconds)

    def faded(self, by: float) -> _Sums:
        return _Sums(*(each * by for each in self))

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(*map(operator.add, self, other))

    def fit(self) -> BatchTiming:
        """The line; it leans on an assumption as far as the sizes were the same."""
        ratio = self.seconds / self.tokens
        mean = self.tokens / self.batches
        spread = self.squares / self.batches - mean * mean
        together = self.products / self.batches - mean * self.seconds / self.batches
        prior = _PRIOR * mean * mean
        assumed = ratio * min(1.0, mean / _PROPORTIONAL_TOKENS)
        slope = min(max((together + prior * assumed) / (spread + prior), 0.0), ratio)
        overhead = max(self.seconds / self.batches - slope * mean, 0.0)
        return BatchTiming(overhead, slope, self.squares / self.tokens)


logger = logging.getLogger(__name__)

MIN_TIMED_TOKENS = 512
"""A batch is not cut below this for the sake of time: small batches waste the engine."""
MIN_SHARED_TOKENS = 128
"""The bound of batches that are kept short for callers with little work."""
_LONE_MULTIPLE = 8
"""How many times `max_batch_seconds` a batch may take while nothing but lone work comes."""
_LONE_SHARE = 4
"""A batch that takes longer than `max_batch_seconds` holds at most one in so many of the tokens
that wait: so it adds little to how long each call waits anyway."""
_GROWTH = 4
"""How much larger than what was seen a batch may be, as far as time is concerned."""
_PREFIX_SHARE = 8
"""An item is split for the sake of time only where its prefix, which is computed again in
each part, is at most one token in so many of a part."""
_RECOVERY = 1 / 64
"""Part by which a full batch that fits raises a limit that was lowered for memory: after 45 of
them a limit that was halved is where it was."""
_ROUNDING = 1e-6
"""The most by which sums of fractions may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How much may wait.

    Args:
        max_queued_tokens: most tokens accepted and not yet computed.
        max_text_bytes: most bytes of text accepted and not yet tokenised.
        batch_fraction: part of both that the class BATCH may fill.
        caller_fraction: part of what its class may fill that one caller alone may fill.
        bytes_per_token: bytes of text taken for one token until they are counted. Below what
            tokenisers reach on plain text (about 4), so that few requests turn out larger.
    """

    max_queued_tokens: int = 262_144
    max_text_bytes: int = 32 * 2**20
    batch_fraction: float = 0.8
    caller_fraction: float = 0.8
    bytes_per_token: float = 3.0

    def __post_init__(self) -> None:
        for name in ("max_queued_tokens", "max_text_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_fraction", "caller_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {getattr(self, name)}")
        if not 0 < self.bytes_per_token < math.inf:
            raise ValueError(f"bytes_per_token must be positive, not {self.bytes_per_token}")

    def fraction(self, priority: PriorityClass) -> float:
        """The part of the queue that a class may fill."""
        return 1.0 if priority is PriorityClass.ONLINE else self.batch_fraction

    def most_tokens(self, priority: PriorityClass) -> int:
        """The largest request of a class."""
        most = self.caller_fraction * self.fraction(priority) * self.max_queued_tokens
        return max(1, int(most + _ROUNDING))

    def most_text_bytes(self, priority: PriorityClass) -> int:
        """The text of the largest request of a class."""
        most = self.caller_fraction * self.fraction(priority) * self.max_text_bytes
        return max(1, int(most + _ROUNDING))

    def over_share(self, held: int, more: int, room: int, weight: float) -> float:
        """The tokens or bytes that a caller must get done before there is room for more.

        Args:
            held: by the caller.
            more: what it asks for.
            room: free for its class before that.
            weight: its share over the largest share of those who hold something.
        """
        part = self.caller_fraction
        over = (1 - part) * (held + more) - part * weight * (room - more)
        return over / (1 - part + part * weight) if over > _ROUNDING else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may hold, and how the engine is shared.

    Args:
        max_batch_tokens: most tokens in a batch, shared prompts counted once for each part.
            One response that is longer runs alone.
        max_batch_sequences: most responses in a batch.
        max_batch_seconds: how long a batch should take at most, as far as can be foreseen
            from those before it; infinite for as long as its tokens take. Of lone work a
            quarter of what waits, and up to 8 times as long: see `LoneWork`.
        shared_batch_seconds: the same for BATCH work while ONLINE work comes, and for ONLINE
            work while callers that ask for little come beside others that have more waiting; in
            the second case a batch with all the work of one of them should take half of it.
        batch_share: part of the tokens that the class BATCH gets while both classes wait.
        patience: seconds after which work without a nearer deadline is due.
    """

    max_batch_tokens: int = 8192
    max_batch_sequences: int = 512
    max_batch_seconds: float = 0.25
    shared_batch_seconds: float = 0.03
    batch_share: float = 0.2
    patience: float = 5.0

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_batch_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_batch_seconds", "shared_batch_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.batch_share < 1:
            raise ValueError(f"batch_share must be in [0, 1), not {self.batch_share}")
        if not 0 < self.patience < math.inf:
            raise ValueError(f"patience must be positive and finite, not {self.patience}")

    def due(self, deadline: float | None, arrival: float) -> float:
        """When work should be done: what its class is ordered by."""
        soon = arrival + self.patience
        return soon if deadline is None else min(deadline, soon)

    def timed_tokens(self, timing: BatchTiming | None, lone_tokens: int = 0) -> int:
        """Tokens of a batch that takes as long as it may; few, until one has been measured.

        Args:
            lone_tokens: tokens that wait for one engine, if they are lone work; else 0.
        """
        if self.max_batch_seconds == math.inf:
            return self.max_batch_tokens
        tokens: float = MIN_TIMED_TOKENS
        if timing is not None:
            timed = timing.tokens(self.max_batch_seconds)
            longer = timing.tokens(_LONE_MULTIPLE * self.max_batch_seconds)
            timed = max(timed, min(longer, lone_tokens / _LONE_SHARE))
            tokens = max(tokens, min(timed, _GROWTH * timing.size))
        return int(min(tokens, self.max_batch_tokens))


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch of one model may hold now."""

    most: int
    """Tokens, except in a batch of one response."""
    target: int
    """Tokens to which it is filled up; an item with a long prefix may take it to `most`."""
    sequences: int
    timing: BatchTiming | None

    def item_tokens(self, prefix: int) -> int:
        """Tokens of the largest part of an item with such a prefix."""
        return min(self.most, max(self.target, _PREFIX_SHARE * prefix))

    def shared(self, seconds: float) -> Room:
        """This room with a target that is computed in so many seconds, but not a tiny one."""
        if self.timing is None:
            return self
        tokens = max(MIN_SHARED_TOKENS, self.timing.tokens(seconds))
        return Room(self.most, int(min(self.target, tokens)), self.sequences, self.timing)

    def within(self, tokens: int, seconds: float) -> Room:
        """This room with a target that is met within so many seconds from now.

        Not where that would make less than half a batch of it: under overload the most
        urgent work is always about to be late, and batches that are cut down to save it cost
        more calls their deadline than they save.

        Args:
            tokens: of the batch so far, which are not to be taken out again.
        """
        if self.timing is None:
            return self
        met = self.timing.tokens(seconds)
        # In floating point, for no number of seconds is too large or too small there.
        if not max(tokens, self.target / 2) <= met < self.target:
            return self
        return Room(self.most, int(met), self.sequences, self.timing)


class Budgets:
    """Learns how large the batches of each key may be: from their time, and from memory.

    A batch that runs out of memory halves the limit of its key; full batches that fit then
    raise it again, by little each, so that one batch in many is lost to trying.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._pace = Pace(limits.max_batch_tokens / 2)
        self._memory: dict[str, int] = {}
        """Only of keys that have run out of memory, and have not recovered."""

    def room(self, key: str, lone_tokens: int = 0) -> Room:
        """What the next batch of a key may hold; see `BatchLimits.timed_tokens`."""
        limits, timing = self._limits, self._pace.timing(key)
        most = self._memory.get(key, limits.max_batch_tokens)
        target = min(limits.timed_tokens(timing, lone_tokens), most)
        return Room(most, target, limits.max_batch_sequences, timing)

    def observe(self, key: str, tokens: int, seconds: float) -> None:
        """A batch of a key has been computed."""
        self._pace.observe(key, tokens, seconds)
        most = self._memory.get(key)
        if most is None or 2 * tokens < most:  # a small batch says nothing of a large one
            return
        raised = most + math.ceil(most * _RECOVERY)
        if raised < self._limits.max_batch_tokens:
            self._memory[key] = raised
        else:
            del self._memory[key]

    def batch_seconds(self, key: str, tokens: int) -> float | None:
        """How long a batch of a key should take; None before its first one."""
        timing = self._pace.timing(key)
        return None if timing is None else timing.overhead + timing.per_token * tokens

    def out_of_memory(self, key: str, tokens: int) -> None:
        """A batch of a key, of so many tokens, did not fit in memory."""
        most = max(1, tokens // 2)
        if most >= self._memory.get(key, self._limits.max_batch_tokens):
            return  # one long response alone: batches have a lower limit already
        self._memory.pop(key, None)
        self._memory[key] = most
        logger.warning("%s: batches of at most %d tokens from now on", key, most)
        while len(self._memory) > MAX_NAMES:
            del self._memory[next(iter(self._memory))]


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """What a batch may hold, how much may wait, and when a batch is taken to hang."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    hang_seconds: float = 60.0
    """Seconds that any batch may take; see `guerdon.reward.scheduling.watchdog`."""
