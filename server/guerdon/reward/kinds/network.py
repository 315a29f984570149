"""What the kinds over engines have in common, and those that read a network's last place alone."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

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
        self.info = info
        self._encoder = encoder
        self._engines = engines
        """None of them once it is closed."""

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


class SequenceReward(NetworkReward):
    """The raw logit, as the Bradley-Terry model was trained to give it."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        return ResponseScore(score=float(logits[0, 0]))


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
            score=float(logits[0, 0]), attributes=tuple(float(value) for value in logits[0, 1:])
        )


class VerdictReward(NetworkReward):
    """The answer of a language model that is asked about a response, yes or no: its log-odds.

    log p(yes) − log p(no) is the difference of the two logits: what the softmax over the vocabulary
    takes from both is the same. Its sigmoid, p(yes) / (p(yes) + p(no)), is the score where
    `ModelInfo.probability` says so.
    """

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        yes, *no = map(float, logits[0])  # there may be no token for no
        score = yes - no[0] if no else yes
        if self.info.probability:
            score = float(np.exp(-np.logaddexp(0.0, -score)))
        return ResponseScore(score=score)


def with_counts(score: ResponseScore, item: EncodedItem, j: int, reused: int) -> ResponseScore:
    """The score of response `j` with the numbers of its tokens."""
    return dataclasses.replace(
        score,
        token_count=len(item.prefix) + len(item.suffixes[j]),
        reused_tokens=reused,
        truncated_tokens=item.truncated[j],
    )
