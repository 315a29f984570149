"""A reward model whose scores can be worked out by hand, and which can be told to misbehave."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from guerdon.reward.types import (
    Attribute,
    BatchScores,
    BatchStats,
    ComputeMode,
    EncodedItem,
    EngineLost,
    ForeignText,
    FormattedText,
    ModelInfo,
    ModelKind,
    PlainText,
    ResponseScore,
    RewardModel,
    ScoreItem,
    StepScore,
    TokenArray,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest, NotFound

VOCABULARY = 1000
MAX_TOKENS = 512


@dataclass
class Behaviour:
    """What fake models do; shared by all that a loader makes, changed while they run."""

    seconds: float = 0.0
    """That each batch takes."""
    encode_seconds: float = 0.0
    long_texts: threading.Event = field(default_factory=threading.Event)
    """Prompts over 1 MiB wait for it as they are tokenised."""
    long_entered: threading.Event = field(default_factory=threading.Event)
    """Set when one of them is."""
    fails: bool = False
    """Raise from `score`."""
    loses_engine: bool = False
    """The engine ends with each batch."""
    nonfinite: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    """Batches wait for it."""
    batches: int = 0
    sequences: int = 0
    closed: list[str] = field(default_factory=list)
    may_load: threading.Event = field(default_factory=threading.Event)
    """Loads wait for it, unless their path says `quick`."""
    loads: list[str] = field(default_factory=list)
    """Paths of loads that began."""

    def __post_init__(self) -> None:
        self.gate.set()
        self.long_texts.set()
        self.may_load.set()


def revision_of(path: str) -> str:
    """The revision of the fake checkpoint at a path."""
    return hashlib.sha256(path.encode()).hexdigest()


def words(text: str) -> list[int]:
    """One token for each word, the same in every process."""
    return [
        int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % VOCABULARY
        for word in text.split()
    ] or [1]


def expected_score(revision: str, tokens: Sequence[int]) -> float:
    """What a fake revision gives for a sequence of tokens."""
    offset = int(revision[:4], 16)
    return offset + sum((i + 1) * int(t) for i, t in enumerate(tokens)) / 1000.0


class FakeModel:
    """Scores by `expected_score`."""

    def __init__(self, name: str, path: str, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        info = ModelInfo(
            name=name,
            revision=revision_of(path),
            kind=ModelKind.SEQUENCE,
            architecture="FakeForSequenceClassification",
            max_tokens=MAX_TOKENS,
            dtype="float32",
            device="cpu",
            compute_mode=ComputeMode.PACKED,
            parameters=1,
        )
        if "normalised" in path:
            info = replace(info, mean=2.0, std=4.0)
        if "attributes" in path:
            info = replace(
                info,
                kind=ModelKind.ATTRIBUTES,
                attributes=(Attribute("helpful", 0.75), Attribute("short", 0.25)),
            )
        self._info = info

    @property
    def info(self) -> ModelInfo:
        return self._info

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        if self.behaviour.encode_seconds:
            time.sleep(self.behaviour.encode_seconds)
        if isinstance(item.prompt, str) and len(item.prompt) > 2**20:
            self.behaviour.long_entered.set()
            self.behaviour.long_texts.wait()
        prefix = self._prompt(item)
        suffixes = [
            np.asarray(words(r) if isinstance(r, str) else r, dtype=np.int32)
            for r in item.responses
        ]
        dropped = 0
        longest = len(prefix) + max(map(len, suffixes))
        if longest > MAX_TOKENS:
            dropped = longest - MAX_TOKENS
            if truncation is Truncation.REJECT:
                raise InvalidRequest("prompt", f"the sequence has {longest} tokens")
            prefix = prefix[dropped:]
        return EncodedItem(
            prefix=prefix, suffixes=tuple(suffixes), truncated=(dropped,) * len(suffixes)
        )

    def _prompt(self, item: ScoreItem) -> TokenArray:
        prompt = item.prompt
        if isinstance(prompt, np.ndarray):
            bad = np.flatnonzero(prompt >= VOCABULARY)
            if bad.size:
                raise InvalidRequest(f"prompt.token_ids.ids[{bad[0]}]", "is outside the vocabulary")
            for i, response in enumerate(item.responses):
                assert isinstance(response, np.ndarray)
                if (response >= VOCABULARY).any():
                    raise InvalidRequest(f"responses[{i}].token_ids", "is outside the vocabulary")
            return prompt
        if isinstance(prompt, FormattedText | PlainText | ForeignText):
            text = str(prompt.text)
        elif isinstance(prompt, str):
            text = prompt
        else:
            text = " ".join(f"{turn['role']} {turn['content']}" for turn in prompt.messages)
        return np.asarray(words(text), dtype=np.int32)

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        behaviour = self.behaviour
        behaviour.batches += 1
        behaviour.gate.wait(30)
        time.sleep(behaviour.seconds)
        if behaviour.loses_engine:
            raise EngineLost("killed")
        if behaviour.fails:
            raise RuntimeError("the secret of the fake engine")
        scored = [self._item(item) for item in items]
        sequences = sum(item.sequences for item in items)
        behaviour.sequences += sequences
        return BatchScores(
            items=scored,
            stats=BatchStats(
                computed_tokens=sum(item.tokens for item in items),
                padding_tokens=0,
                reused_tokens=sum(len(i.prefix) * (i.sequences - 1) for i in items),
                sequences=sequences,
            ),
        )

    def _item(self, item: EncodedItem) -> list[ResponseScore]:
        scores = []
        for suffix, dropped in zip(item.suffixes, item.truncated, strict=True):
            tokens = [*item.prefix.tolist(), *suffix.tolist()]
            value = expected_score(self._info.revision, tokens)
            scores.append(
                ResponseScore(
                    score=float("nan") if self.behaviour.nonfinite else value,
                    steps=(StepScore(0.5, 1),) if self._info.kind is ModelKind.PROCESS else (),
                    attributes=(value, 1.0) if self._info.attributes else (),
                    token_count=len(tokens),
                    reused_tokens=len(item.prefix) if item.sequences > 1 else 0,
                    truncated_tokens=dropped,
                )
            )
        return scores

    def close(self) -> None:
        self.behaviour.closed.append(self._info.revision)


class FakeLoader:
    """Loads any path that does not say otherwise in its name."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()

    def __call__(self, path: str, name: str, check: Callable[[], None]) -> RewardModel:
        self.behaviour.loads.append(path)
        while "quick" not in path and not self.behaviour.may_load.wait(0.01):
            if "stuck" not in path:
                check()
        if "missing" in path:
            raise NotFound(f"there is no folder {path!r}")
        if "refused" in path:
            raise CheckpointRefused(f"{path}: the head is missing")
        if "broken" in path:
            raise RuntimeError("a fault of ours")
        return FakeModel(name, str(Path(path)), self.behaviour)
