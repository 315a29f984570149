"""Several attributes of a response (helpful, correct, …) and their weighted sum."""

from __future__ import annotations

from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.network import NetworkReward
from guerdon.reward.types import EncodedItem, ResponseScore


class AttributesReward(NetworkReward):
    """Σ weight · value, with the values reported in the order of `ModelInfo.attributes`."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        values = tuple(float(value) for value in logits[0])
        weights = (attribute.weight for attribute in self.info.attributes)
        return ResponseScore(
            # Not fsum, which raises on infinities: they are for the dispatcher to refuse.
            score=sum(w * v for w, v in zip(weights, values, strict=True)),
            attributes=values,
        )


class WeighedReward(NetworkReward):
    """A model that weighs its attributes itself: the logits are the score, then the values."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        return ResponseScore(
            score=float(logits[0, 0]),
            attributes=tuple(float(value) for value in logits[0, 1:]),
        )
