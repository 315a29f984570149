"""What is asked of a contender, and what is known afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A prompt and the responses to it: messages and texts, or token ids throughout."""

    prompt: list[Any]
    """`{"role": …, "content": …}` each, or ids."""
    responses: list[Any]
    """Texts, or lists of ids."""

    @property
    def tokens(self) -> bool:
        """Whether it is in token ids."""
        return isinstance(self.prompt[0], int)


@dataclass(frozen=True)
class Turn:
    """How a contender did with some calls.

    Args:
        seconds: from the first call to the last answer.
        latencies: seconds of each call.
        scores: raw scores of each call's responses; empty lists where nothing is scored.
    """

    seconds: float
    latencies: list[float]
    scores: list[list[float]]


def flat(scores: Sequence[Sequence[float]]) -> Iterator[float]:
    """The scores of all calls, one after the other."""
    return (score for call in scores for score in call)
