"""One score for a whole response: the raw logit of a head with one label."""

from __future__ import annotations

from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.network import NetworkReward, token_count
from guerdon.reward.types import EncodedItem, ResponseScore


class SequenceReward(NetworkReward):
    """The raw logit, as the Bradley-Terry model was trained to give it."""

    def _response(self, item: EncodedItem, j: int, logits: Logits, reused: int) -> ResponseScore:
        return ResponseScore(
            score=float(logits[0, 0]),
            token_count=token_count(item, j),
            reused_tokens=reused,
            truncated_tokens=item.truncated[j],
        )
