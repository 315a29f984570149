"""The answer of a language model that is asked about a response: yes or no.

log p(yes) − log p(no) is the difference of the two logits: what the softmax over the vocabulary
takes from both is the same. Its sigmoid is p(yes) / (p(yes) + p(no)).
"""

from __future__ import annotations

import numpy as np

from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.network import NetworkReward
from guerdon.reward.types import EncodedItem, ResponseScore


def log_odds(logits: Logits) -> float:
    """The score of the logits [1, 2] of yes and no; of [1, 1], yes alone, the logit itself."""
    return float(logits[0, 0]) - (float(logits[0, 1]) if logits.shape[1] == 2 else 0.0)


class VerdictReward(NetworkReward):
    """The log-odds of yes against no, or the probability where `ModelInfo.probability` says so."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        score = log_odds(logits)
        if self.info.probability:
            score = float(np.exp(-np.logaddexp(0.0, -score)))
        return ResponseScore(score=score)
