"""What the contenders are asked: real conversations, rankings, and groups of random tokens.

No text is sent twice in a run, since some remember what they computed: each round's conversations
begin with words of their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.common import DATA, real_items
from tests.bench.peers.calls import Call
from tests.bench.serving import as_client_item

pairs = DATA
"""The preference pairs whose conversations are sent."""


@dataclass(frozen=True)
class Group:
    """The shape of (b): one long prompt with several responses."""

    responses: int = 16
    tokens: int = 256
    prompt: int = 1024

    def __str__(self) -> str:
        return f"{self.responses} × {self.tokens} on {self.prompt}"


def conversations(salt: str) -> Iterator[Call]:
    """Real conversations with one response each, without end; no other salt has the same."""
    for number in itertools.count():
        for item in _texts(pairs):
            first, *rest = (dict(turn) for turn in item.prompt)
            first["content"] = f"Question {salt}.{number}: {first['content']}"
            yield Call([first, *rest], list(item.responses))


def real_calls(count: int, salt: str) -> list[Call]:
    """The first of them."""
    return list(itertools.islice(conversations(salt), count))


def rankings(count: int, answers: int, salt: str) -> list[Call]:
    """Prompts of real conversations, each with the answers of so many."""
    calls = real_calls(count * answers, salt)
    groups = [calls[start : start + answers] for start in range(0, len(calls), answers)]
    return [
        Call(first.prompt, [*first.responses, *(r for call in rest for r in call.responses)])
        for first, *rest in groups
    ]


@functools.cache
def _texts(pairs: Path) -> list[Any]:
    items = real_items(2000, pairs)
    return [as_client_item(item) for item in {repr(each): each for each in items}.values()]


def group_call(group: Group, seed: int) -> Call:
    """Random tokens in such a shape."""
    rng = np.random.default_rng(seed)
    sizes = [group.prompt] + [group.tokens] * group.responses
    prompt, *responses = (rng.integers(100, 40_000, size).tolist() for size in sizes)
    return Call(prompt, responses)
