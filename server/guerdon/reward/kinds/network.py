"""The kinds of models over engines: what the numbers of one network, or of two, mean."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from guerdon.reward.encoding.encoders import ItemEncoder
from guerdon.reward.engine.engine import Engine
from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.ensemble import join_stats
from guerdon.reward.types import (
    BatchScores,
    EncodedItem,
    ModelInfo,
    ResponseScore,
    ScoreItem,
    StepScore,
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
    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        """Compute one batch; see `RewardModel.score`."""

    def close(self) -> None:
        """Free the memory."""
        engines, self._engines = self._engines, ()
        for engine in engines:
            engine.close()


class NetworkReward(EngineReward):
    """A `RewardModel` over one engine; a kind says what a response's logits mean."""

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
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


Steps = npt.NDArray[np.float64]
"""Raw scores of a response's steps, shape [S], S ≥ 1."""


def log_product(steps: Steps) -> float:
    """The logarithm of Π σ(sᵢ): of the probability that every step is right.

    The product of the steps' probabilities is what "Let's Verify Step by Step"
    (arXiv:2305.20050, section 2.6) ranks by; its logarithm Σ log σ(sᵢ) ranks the same
    and does not underflow. It is never positive.
    """
    return float(-np.logaddexp(0.0, -steps).sum())


AGGREGATE: Final[dict[str, Callable[[Steps], float]]] = {
    "min": lambda steps: float(steps.min()),
    "mean": lambda steps: float(steps.mean()),
    "last": lambda steps: float(steps[-1]),
    "product": log_product,
}


def step_scores(logits: Logits) -> Steps:
    """One raw score for each step, from logits [S, 1], or log-odds from [S, 2]."""
    wide = logits.astype(np.float64)
    return wide[:, 0] if wide.shape[1] == 1 else wide[:, 1] - wide[:, 0]


class ProcessReward(NetworkReward):
    """A score for each step, and one for the response by `ModelInfo.step_aggregation`."""

    def _response(self, item: EncodedItem, j: int, logits: Logits) -> ResponseScore:
        steps = step_scores(logits)
        places = item.readout[j]
        # Nothing to aggregate is not a score of zero: not-a-number, so that it is refused.
        score = AGGREGATE[self.info.step_aggregation](steps) if len(steps) else float("nan")
        return ResponseScore(
            score=score,
            steps=tuple(
                StepScore(float(s), int(place)) for s, place in zip(steps, places, strict=True)
            ),
        )


class ImplicitReward(EngineReward):
    """The reward that a policy implies against the reference it was trained from.

    r(x, y) = β · Σₜ (log π(yₜ | x, y_<t) − log π_ref(yₜ | x, y_<t)): Rafailov et al. 2023
    (arXiv:2305.18290), eq. 5 without β·log Z(x), which is the same for all responses to a prompt.
    So scores of responses to one prompt may be compared, and those of different prompts only with
    care. Both language models read the same tokens.

    Args:
        info: of both.
        encoder: of the policy; says which tokens are the response's.
        policy: computes log π.
        reference: computes log π_ref.
        beta: β, positive.
    """

    def __init__(
        self, info: ModelInfo, encoder: ItemEncoder, policy: Engine, reference: Engine, beta: float
    ) -> None:
        super().__init__(info, encoder, policy, reference)
        self._beta = beta

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        """Compute one batch with both; see `RewardModel.score`."""
        policy, reference = (engine.compute(items) for engine in self._engines)
        scores = [
            [
                with_counts(
                    ResponseScore(score=self._reward(policy.logits[i][j], reference.logits[i][j])),
                    *(item, j, policy.reused[i][j]),
                )
                for j in range(item.sequences)
            ]
            for i, item in enumerate(items)
        ]
        return BatchScores(items=scores, stats=join_stats([policy.stats, reference.stats]))

    def _reward(self, policy: Logits, reference: Logits) -> float:
        """The reward, from the log-probabilities [T, 1] of a response's tokens."""
        assert len(policy), "a response has at least one token"
        with np.errstate(invalid="ignore"):  # what is not finite is for the dispatcher to refuse
            ratios = policy.astype(np.float64) - reference.astype(np.float64)
            return self._beta * float(ratios.sum())
