"""How much one request may hold."""

from __future__ import annotations

from dataclasses import dataclass

from guerdon.settings import positive


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may hold."""

    max_items: int = 1024
    """Items in a request."""
    max_samples: int = 256
    """Completions of an item."""
    max_id_length: int = 256
    """Characters in an item's id."""
    max_stop_tokens: int = 64
    """Stop tokens in a request, and stop texts."""
    max_logprobs: int = 1_000_000
    """Log-probabilities that an answer of OpenAI's API may tell."""
    max_tensors: int = 65_536
    """Tensors in an update."""
    max_canaries: int = 256
    """Canaries in an update."""
    max_canary_tokens: int = 65_536
    """Tokens of all canaries of an update."""

    def __post_init__(self) -> None:
        positive(self)
