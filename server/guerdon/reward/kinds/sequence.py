"""One score for a whole response: the raw logit of a head with one label."""

from __future__ import annotations

from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.network import NetworkReward
from guerdon.reward.types import EncodedItem, ResponseScore


class SequenceReward(NetworkReward):
    """The raw logit, as the Bradley-Terry model was trained to give it."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        return ResponseScore(score=float(logits[0, 0]))
