"""Scores of comparisons by a served model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from guerdon.cli.connection import remedy
from guerdon.client import GuerdonError, RewardClient, Score, ScoringOptions
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.evaluate.comparisons import Comparison


@dataclass(slots=True)
class ComparisonScores:
    """What one model says of all comparisons."""

    model: str
    revision: str
    scores: list[tuple[Floats, Floats] | None]
    """Scores of each comparison's chosen and rejected answers; None where the server refused it."""
    tokens: list[tuple[Floats, Floats] | None]
    """What the model saw of each answer, its prompt included."""
    refused: dict[int, str] = field(default_factory=dict)
    """Why, by the comparison's place."""
    seconds: float = 0.0
    computed: int = 0
    """Tokens of all answers, prompts counted once for each."""
    same_tokens: int = 0
    """Comparisons of which a chosen and a rejected answer are the same tokens to the model."""
    dropped: int = 0
    """Answers of whose conversation the model's chat template leaves text out."""


def score_comparisons(
    client: RewardClient,
    model: str,
    comparisons: Sequence[Comparison],
    places: Sequence[str],
    *,
    in_flight: int,
    options: ScoringOptions,
    skip: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> ComparisonScores:
    """Score everything by the revision that the model has when this begins.

    Args:
        client: of the server.
        model: its name, an alias, or `name@revision`.
        comparisons: what to score.
        places: where each stood, for errors.
        in_flight: items sent before replies arrive.
        options: of the client's scoring.
        skip: leave out what the server refuses, rather than stop.
        progress: told how many items are done.

    Raises:
        DataError: a comparison is refused, and they are not to be skipped.
        GuerdonError: the server can't be used.
    """
    info = client.get_model(model)
    items, bounds = [], [0]
    for comparison in comparisons:
        items += comparison.items()
        bounds.append(len(items))
    pinned = f"{info.name}@{info.revision}"
    found: dict[int, Sequence[Score] | GuerdonError] = {}
    begun = time.monotonic()
    for result in client.score_stream(pinned, items, in_flight=in_flight, **options):
        if result.error is not None:
            found[result.index] = result.error
        else:
            assert result.scores is not None
            found[result.index] = result.scores
        progress(len(found))
    given = ComparisonScores(info.name, info.revision, [], [], seconds=time.monotonic() - begun)
    for place, (begin, end) in enumerate(pairwise(bounds)):
        answers: list[Score] = []
        refusal: GuerdonError | None = None
        for index in range(begin, end):
            part = found[index]
            if isinstance(part, GuerdonError):
                refusal = part
            else:
                answers += part
        if refusal is None:
            _add(given, comparisons[place], answers)
            continue
        if not skip:
            raise DataError(
                f"{places[place]}: the server refuses it: {refusal.message}{remedy(refusal)}"
            )
        given.scores.append(None)
        given.tokens.append(None)
        given.refused[place] = refusal.message
    return given


def _add(given: ComparisonScores, comparison: Comparison, answers: Sequence[Score]) -> None:
    """Add what the server says of a comparison's answers.

    Answers that are the same tokens get one score: those of two places in a batch may differ by
    the noise of floating-point numbers, which is no preference.
    """
    first: dict[str, float] = {}
    scores = np.array(
        [first.setdefault(a.tokens_hash, a.score) if a.tokens_hash else a.score for a in answers]
    )
    tokens = np.array([a.token_count for a in answers], dtype=np.float64)
    hashes = [a.tokens_hash for a in answers]
    cut = len(comparison.chosen)
    given.scores.append((scores[:cut], scores[cut:]))
    given.tokens.append((tokens[:cut], tokens[cut:]))
    given.computed += int(tokens.sum())
    given.same_tokens += bool({*hashes[:cut]} & {*hashes[cut:]} - {""})
    given.dropped += sum(bool(a.dropped) for a in answers)
