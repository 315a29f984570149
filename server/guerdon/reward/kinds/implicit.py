"""The reward that a policy implies against the reference it was trained from.

r(x, y) = β · Σₜ (log π(yₜ | x, y_<t) − log π_ref(yₜ | x, y_<t)): Rafailov et al. 2023
(arXiv:2305.18290), eq. 5 without β·log Z(x), which is the same for all responses to a prompt. So
scores of responses to one prompt may be compared, and those of different prompts only with care.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guerdon.reward.encoding.encoders import ItemEncoder
from guerdon.reward.engine.engine import Engine
from guerdon.reward.engine.heads import Logits
from guerdon.reward.kinds.ensemble import join_stats
from guerdon.reward.kinds.network import EngineReward, with_counts
from guerdon.reward.types import BatchScores, EncodedItem, ModelInfo, ResponseScore


class ImplicitReward(EngineReward):
    """A `RewardModel` made of two language models that read the same tokens.

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

    def score(self, items: Sequence[EncodedItem], engine: int = 0) -> BatchScores:
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
