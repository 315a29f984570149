"""What the kinds that run one network have in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

from guerdon.reward.encoding.encoders import ItemEncoder
from guerdon.reward.engine.engine import Engine
from guerdon.reward.engine.heads import Logits
from guerdon.reward.types import (
    BatchScores,
    EncodedItem,
    ModelInfo,
    ResponseScore,
    ScoreItem,
    Truncation,
)


class EngineReward(abc.ABC):
    """A `RewardModel` over engines that read the same tokens.

    A score that is not finite is returned as it stands: whoever dispatches the batch
    fails the requests it belongs to.
    """

    def __init__(self, info: ModelInfo, encoder: ItemEncoder, *engines: Engine) -> None:
        self._info = info
        self._encoder = encoder
        self._engines = engines
        """None of them once it is closed."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """Render and tokenise; see `RewardModel.encode`."""
        return self._encoder.encode(item, truncation, reject_control_tokens=reject_control_tokens)

    @abc.abstractmethod
    def score(self, items: Sequence[EncodedItem], engine: int = 0) -> BatchScores:
        """Compute one batch; see `RewardModel.score`."""

    def close(self) -> None:
        """Free the memory."""
        engines, self._engines = self._engines, ()
        for engine in engines:
            engine.close()


class NetworkReward(EngineReward):
    """A `RewardModel` over one engine; a kind says what a response's logits mean."""

    def score(self, items: Sequence[EncodedItem], engine: int = 0) -> BatchScores:
        """Compute one batch; see `RewardModel.score`."""
        (network,) = self._engines
        computed = network.compute(items)
        scores = [
            [
                with_counts(self._response(item, j, logits), item, j, reused)
                for j, (logits, reused) in enumerate(zip(rows, shared, strict=True))
            ]
            for item, rows, shared in zip(items, computed.logits, computed.reused, strict=True)
        ]
        return BatchScores(items=scores, stats=computed.stats)

    @abc.abstractmethod
    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        """The score of response `j` from its logits [places, labels], without counts."""


def with_counts(score: ResponseScore, item: EncodedItem, j: int, reused: int) -> ResponseScore:
    """The score of response `j` with the numbers of its tokens."""
    return dataclasses.replace(
        score,
        token_count=len(item.prefix) + len(item.suffixes[j]),
        reused_tokens=reused,
        truncated_tokens=item.truncated[j],
    )
