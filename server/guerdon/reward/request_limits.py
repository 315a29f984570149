"""How much one request may hold: the settings' table `[limits]`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from guerdon.settings import positive


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
        positive(self, *(field.name for field in dataclasses.fields(self)))
