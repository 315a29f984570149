"""What integrations tell of scores beside the reward itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from guerdon.client import Score

logger = logging.getLogger(__name__)


def other_numbers(score: Score) -> Mapping[str, float]:
    """The values of the model's attributes, and `spread` from an ensemble.

    Every score of one model has the same keys.
    """
    spread = {} if score.spread is None else {"spread": score.spread}
    return {**score.attributes, **spread}


class DroppedText:
    """Says once that the scores of a model don't depend on all of the text.

    Args:
        model: as it was asked for.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._noted = False

    def note(self, scores: Iterable[Score]) -> None:
        """Look at some scores."""
        dropped = {part.replace("_", " ") for score in scores for part in score.dropped}
        if dropped and not self._noted:
            self._noted = True
            logger.warning(
                "the chat template of %s leaves out %s, so the rewards don't depend on that",
                self._model,
                " and ".join(sorted(dropped)),
            )
