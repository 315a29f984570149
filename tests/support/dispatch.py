"""Items without text, and models without weights, for tests of what lies between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from guerdon.reward.scheduling.events import DropReason, DropStage, Failure
from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    ComputeMode,
    DeviceLost,
    EncodedItem,
    EngineLost,
    ModelInfo,
    ModelKind,
    PriorityClass,
    ResponseScore,
    ScoreItem,
    Truncation,
)


def item_of(prefix: int, *suffixes: int, mark: int = 0) -> EncodedItem:
    """An item of so many tokens; response i of it is marked `mark + i` in its first token."""
    return EncodedItem(
        prefix=np.zeros(prefix, np.int32),
        suffixes=tuple(np.full(n, mark + i, np.int32) for i, n in enumerate(suffixes)),
        truncated=(0,) * len(suffixes),
    )


def marks(item: EncodedItem) -> list[int]:
    """The marks of an item's responses."""
    return [int(suffix[0]) for suffix in item.suffixes]


class MarkModel:
    """Scores each response by its mark. Counts what it computes, and can be held up.

    Args:
        before: called with the items of each batch on the engine's thread; may raise.
        value: from mark to score.
    """

    def __init__(
        self,
        name: str = "marks",
        *,
        before: Callable[[Sequence[EncodedItem]], None] = lambda items: None,
        value: Callable[[int], float] = float,
    ) -> None:
        self._info = ModelInfo(
            name=name,
            revision="0" * 12,
            kind=ModelKind.SEQUENCE,
            architecture="none",
            max_tokens=1 << 20,
            dtype="float32",
            device="cpu",
            compute_mode=ComputeMode.PACKED,
        )
        self._before = before
        self._value = value
        self.gate = threading.Event()
        """Batches wait here; open unless a test closes it."""
        self.gate.set()
        self.entered = threading.Event()
        """Set as a batch comes in."""
        self.batches: list[list[int]] = []
        """The marks of each batch that was computed to its end."""

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def computed(self) -> list[int]:
        """The marks of all that was computed."""
        return [mark for batch in self.batches for mark in batch]

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        raise NotImplementedError

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        self.entered.set()
        assert self.gate.wait(timeout=60)
        self._before(items)
        self.batches.append([mark for item in items for mark in marks(item)])
        rows = [[ResponseScore(score=self._value(mark)) for mark in marks(item)] for item in items]
        tokens = sum(item.tokens for item in items)
        return BatchScores(rows, BatchStats(tokens, 0, 0, len(self.batches[-1])))

    def close(self) -> None:
        pass


class Recorder:
    """A dispatch observer that keeps what it is told."""

    def __init__(self) -> None:
        self.queue: Mapping[PriorityClass, tuple[int, int]] = {}
        self.most_tokens = 0
        self.sheds: list[PriorityClass] = []
        self.drops: list[tuple[DropReason, DropStage]] = []
        self.batches: list[BatchStats] = []
        self.failures: list[Failure] = []
        self.preempting = 0
        self.nonfinites = 0
        self.engine: list[bool] = []
        self.engines: dict[int, bool] = {}
        self.ended = False

    def queue_changed(self, queue: Mapping[PriorityClass, tuple[int, int]]) -> None:
        self.queue = queue
        self.most_tokens = max(self.most_tokens, sum(tokens for tokens, _ in queue.values()))

    def shed(self, model_name: str, priority: PriorityClass) -> None:
        self.sheds.append(priority)

    def dropped(
        self, info: ModelInfo, priority: PriorityClass, reason: DropReason, stage: DropStage
    ) -> None:
        self.drops.append((reason, stage))

    def batch_done(self, info: ModelInfo, stats: BatchStats, seconds: float, engine: int) -> None:
        self.batches.append(stats)

    def preempted(self, info: ModelInfo) -> None:
        self.preempting += 1

    def batch_failed(self, info: ModelInfo, reason: Failure, seconds: float, engine: int) -> None:
        self.failures.append(reason)

    def nonfinite(self, info: ModelInfo, count: int) -> None:
        self.nonfinites += count

    def engine_changed(self, engine: int, up: bool) -> None:
        self.engine.append(up)
        self.engines[engine] = up

    def engines_ended(self) -> None:
        self.ended = True


class Keeper:
    """Engines that end when they are told to, and come back as long as they can and may."""

    def __init__(self, engines: int = 1) -> None:
        self.on_end: Callable[[int], None] = lambda engine: None
        self.engines = engines
        self.ended: set[int] = set()
        self.gone = False
        """Whether none can be started any more."""
        self.restores: list[int] = []
        self.killed = threading.Event()
        self.may_restore = threading.Event()
        self.may_restore.set()

    def end(self, engine: int) -> None:
        """End an engine; what a model in it raises then."""
        self.ended.add(engine)
        raise EngineLost("the engine's process has ended")

    def lost(self, engine: int) -> bool:
        return engine in self.ended

    def kill(self, engine: int) -> None:
        self.ended.add(engine)
        self.killed.set()

    def restore(self, engine: int) -> None:
        assert self.may_restore.wait(60)
        if self.gone:
            raise DeviceLost("it ends whenever it is started")
        self.restores.append(engine)
        self.ended.remove(engine)

    def close(self) -> None:
        self.may_restore.set()
