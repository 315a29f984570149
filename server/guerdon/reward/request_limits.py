"""How much one request may hold, and how those in other systems' formats are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        positive(self)


@dataclass(frozen=True, kw_only=True)
class FormatSettings:
    """How requests in other systems' formats are read."""

    default_model: str = ""
    """Model of requests that name none. (default: the only one that is loaded)"""
    tail: Literal["complete", "verbatim"] = "complete"
    """What to do with a rendered conversation that lacks what the model's chat template writes
    before or after it: complete adds it, verbatim scores it as it stands."""
    openrlhf_scores: Literal["sigmoid", "raw"] = "sigmoid"
    """What OpenRLHF gets as `scores`, by which it filters prompts, with a range of 0 to 1 by
    default; `rewards` are raw."""
    v1_rerank: Literal["cohere", "sglang"] = "cohere"
    """Whose replies `/v1/rerank` gives, since the two systems' requests are alike: cohere ranks by
    the sigmoid of scores, as Jina and vLLM do; sglang gives raw scores in a plain list."""
