"""How much one request may hold: the settings' table `[limits]`."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may hold."""

    max_items: int = 4096
    """Items in a request."""
    max_responses: int = 4096
    """Responses in an item, and candidates to rank."""
    max_total_responses: int = 16384
    """Responses in a request, over all items."""
    max_id_length: int = 256
    """Characters in an item's id or a stream's request id."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"{each.name} is {getattr(self, each.name)}, it must be positive")
