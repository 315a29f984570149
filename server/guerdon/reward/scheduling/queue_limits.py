"""How much may wait: in all, of a class, and of one caller. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from guerdon.reward.types import PriorityClass

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
        if self.max_queued_tokens < 1:
            raise ValueError(f"max_queued_tokens must be at least 1, not {self.max_queued_tokens}")
        if self.max_text_bytes < 1:
            raise ValueError(f"max_text_bytes must be at least 1, not {self.max_text_bytes}")
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
