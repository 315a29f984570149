"""What the dispatcher tells whoever watches it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

from guerdon.reward.types import BatchStats, ModelInfo, PriorityClass


class Failure(enum.Enum):
    """Why a batch, or something in it, has no scores."""

    EXCEPTION = "exception"
    NONFINITE = "nonfinite"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_LOST = "engine_lost"


class DropReason(enum.Enum):
    """Why nobody waits for accepted work any more."""

    EXPIRED = "expired"
    CANCELLED = "cancelled"


class DropStage(enum.Enum):
    """How far dropped work had come."""

    QUEUED = "queued"
    """Not all of it was computed."""
    COMPUTING = "computing"
    """It was computed, and the answer came too late."""


class DispatchObserver(Protocol):
    """Told what happens, on the event loop. What it raises is logged and ignored."""

    def queue_changed(self, queue: Mapping[PriorityClass, tuple[int, int]]) -> None:
        """What each class holds now: tokens (estimates included) and items, not yet computed."""

    def shed(self, model_name: str, priority: PriorityClass) -> None:
        """A request was refused for overload."""

    def dropped(
        self, info: ModelInfo, priority: PriorityClass, reason: DropReason, stage: DropStage
    ) -> None:
        """An accepted item ended with nobody waiting for it."""

    def batch_done(self, info: ModelInfo, stats: BatchStats, seconds: float, engine: int) -> None:
        """A model computed a batch on an engine."""

    def preempted(self, info: ModelInfo) -> None:
        """A batch was computed, or failed, between the layers of another one."""

    def batch_failed(self, info: ModelInfo, reason: Failure, seconds: float, engine: int) -> None:
        """A batch, or something in it, has no scores. NONFINITE comes after `batch_done`,
        with no seconds of its own; OUT_OF_MEMORY comes for each attempt."""

    def nonfinite(self, info: ModelInfo, count: int) -> None:
        """So many responses of a batch had numbers that are not finite."""

    def engine_changed(self, engine: int, up: bool) -> None:
        """An engine can compute batches, or can't, since it has ended."""

    def engines_ended(self) -> None:
        """No batch will be computed any more."""
