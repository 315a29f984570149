"""What callers ask of the sampler, checked, before it meets the engine. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guerdon.serving.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt and how many completions it gets."""

    prompt: Prompt
    n: int = 1
    seed: int | None = None
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How completions are drawn."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A whole call."""

    items: Sequence[Item]
    options: Options
    min_version: int = 0
    return_text: bool = False

    @property
    def completions(self) -> int:
        """Of all items."""
        return sum(item.n for item in self.items)
