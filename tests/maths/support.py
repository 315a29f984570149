"""Settings for tests of the mathematics."""

from __future__ import annotations

from typing import Any, TypeVar

from guerdon.trainer.rl.settings import RunSettings

S = TypeVar("S", bound=RunSettings)

_PLACES: dict[str, Any] = {
    "policy": "policy",
    "sampler": "localhost:1",
    "prompts": "prompts.jsonl",
    "eval_prompts": "held-out.jsonl",
    "output": "run",
    "verifier": ("exact",),
}


def settings(kind: type[S], **values: Any) -> S:
    """Settings of a run whose places are never looked at."""
    return kind(**(_PLACES | values))
