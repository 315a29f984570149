"""The encoder that a checkpoint's kind asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.encoding.pair_encoder import PairEncoder
from guerdon.reward.encoding.policy_encoder import PolicyEncoder
from guerdon.reward.encoding.verdict_encoder import VerdictEncoder
from guerdon.reward.types import EncodedItem, ModelKind, ScoreItem, Truncation


class ItemEncoder(Protocol):
    """Renders and tokenises."""

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """See `RewardModel.encode`."""
        ...


def new_encoder(checkpoint: Checkpoint) -> ItemEncoder:
    """The encoder of a checkpoint; members of an ensemble read the same tokens as the first.

    Raises:
        CheckpointRefused: its tokenizer or template can't be used.
    """
    if checkpoint.kind is ModelKind.PAIRWISE:
        return PairEncoder(checkpoint)
    if checkpoint.kind is ModelKind.IMPLICIT:
        return PolicyEncoder(checkpoint)
    if checkpoint.kind is ModelKind.VERDICT:
        return VerdictEncoder(checkpoint)
    if checkpoint.kind is ModelKind.ENSEMBLE:
        return Encoder(replace(checkpoint.members[0], max_tokens=checkpoint.max_tokens))
    return Encoder(checkpoint)
