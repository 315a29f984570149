"""Scores of comparisons by a served model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from guerdon.client import GuerdonError, RewardClient, ScoringOptions
from guerdon.trainer.errors import DataError
from guerdon.trainer.evaluate.comparisons import Comparison
from guerdon.trainer.measures import Floats


@dataclass(slots=True)
class Judged:
    """What one model says of all comparisons."""

    model: str
    revision: str
    scores: list[tuple[Floats, Floats] | None]
    """Of each comparison's chosen and rejected answers; None where the server refused it."""
    tokens: list[tuple[Floats, Floats] | None]
    """What the model saw of each answer, its prompt included."""
    refused: dict[int, str] = field(default_factory=dict)
    """Why, by the comparison's place."""
    seconds: float = 0.0
    computed: int = 0
    """Tokens of all answers, prompts counted once for each."""


def judge(
    client: RewardClient,
    model: str,
    comparisons: Sequence[Comparison],
    places: Sequence[str],
    *,
    in_flight: int,
    options: ScoringOptions,
    skip: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> Judged:
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
    found: dict[int, list[tuple[float, int]] | GuerdonError] = {}
    begun = time.monotonic()
    for result in client.score_stream(pinned, items, in_flight=in_flight, **options):
        if result.error is not None:
            found[result.index] = result.error
        else:
            assert result.scores is not None
            found[result.index] = [(s.score, s.token_count) for s in result.scores]
        progress(len(found))
    judged = Judged(info.name, info.revision, [], [], seconds=time.monotonic() - begun)
    for place, (begin, end) in enumerate(pairwise(bounds)):
        answers: list[tuple[float, int]] = []
        refusal: GuerdonError | None = None
        for index in range(begin, end):
            part = found[index]
            if isinstance(part, GuerdonError):
                refusal = part
            else:
                answers += part
        if refusal is None:
            _add(judged, comparisons[place], answers)
            continue
        if not skip:
            raise DataError(f"{places[place]}: the server refuses it: {refusal.message}")
        judged.scores.append(None)
        judged.tokens.append(None)
        judged.refused[place] = refusal.message
    return judged


def _add(judged: Judged, comparison: Comparison, answers: list[tuple[float, int]]) -> None:
    scores, tokens = (np.array(column, dtype=np.float64) for column in zip(*answers, strict=True))
    cut = len(comparison.chosen)
    judged.scores.append((scores[:cut], scores[cut:]))
    judged.tokens.append((tokens[:cut], tokens[cut:]))
    judged.computed += int(tokens.sum())
