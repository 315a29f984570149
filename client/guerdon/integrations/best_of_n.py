"""The best of n answers: drawn by anything that samples text, ranked by a served reward model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, Unpack

from guerdon.client import AsyncRewardClient, Prompt, Score
from guerdon.client.config import ScoringOptions, check_number
from guerdon.client.errors import invalid

P = TypeVar("P", bound=Prompt)
Generate = Callable[[P, int], Awaitable[Sequence[str]]]
"""Draws answers: takes the prompt and how many, returns their texts."""

_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer and its score."""

    text: str
    score: Score


async def best_of_n(
    generate: Generate[P],
    rewards: AsyncRewardClient,
    model: str,
    prompt: P,
    *,
    n: int,
    **options: Unpack[ScoringOptions],
) -> tuple[Candidate, ...]:
    """The answers, best first; equal scores stay in the order in which they were drawn.

    Args:
        generate: draws answers to the prompt. It may return fewer than `n`, as one that keeps only
            those that are whole.
        rewards: where to ask.
        model: a name, an alias, or `name@revision`; pairwise models will do.
        prompt: what is answered, text or messages.
        n: how many answers to draw.
        options: see `ScoringOptions`; `timeout` is that of the ranking alone.

    Raises:
        GuerdonError: an answer can't be scored, or there was no ranking in time.
        InvalidArgument: `n` is no number of answers, or none was drawn, or more than `n`, or
            one text in the place of a list.
    """
    check_number("n", n, 1, _MOST, whole=True)
    texts = await generate(prompt, n)
    if isinstance(texts, str):
        raise invalid("generate", "drew one text, not a list of them")
    if not 1 <= len(texts) <= n:
        raise invalid("generate", f"drew {len(texts)} answers where {n} were asked for")
    result = await rewards.rank(model, prompt, texts, **options)
    return tuple(Candidate(texts[place.index], place.score) for place in result.ranking)
