"""What the policy client takes and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from guerdon.client.types import Prompt

if TYPE_CHECKING:  # it takes longer to load than all of the client
    import numpy as np
    import numpy.typing as npt

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """A prompt and how many completions it gets; they share the prompt's computation."""

    prompt: Prompt
    n: int = 1
    seed: int | None = None
    """A number that makes the draw repeatable under the same weights."""
    id: str = ""
    """A label that comes back with each completion."""
    drawn: int = 0
    """Tokens at the end of a prompt of `TokenIds` that were drawn before, as the beginning of the
    completion: its `text` begins with theirs, and `token_ids` are the new ones."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens `start` to `end` - 1 were drawn under one version of the weights."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One finished completion of T tokens."""

    item: int
    """The item's place in the call."""
    sample: int
    """Which of the item's completions, from 0."""
    id: str
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    """Each token's, under the distribution that it was drawn from."""
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...]
    """Versions in order, without gaps, over all tokens."""
    text: str
    """The text; empty unless it was asked for."""
    prompt_token_ids: npt.NDArray[np.int32]
    stop_text: str = ""
    """The text in `stop` that ended it; empty where a token or the limit did."""

    @property
    def finished(self) -> bool:
        """Whether it ended by itself, not at the limit of tokens."""
        return self.finish_reason == "stop"

    @property
    def versions(self) -> npt.NDArray[np.int64]:
        """The weight version of each token."""
        import numpy as np

        counts = [span.end - span.start for span in self.spans]
        return np.repeat(np.array([s.version for s in self.spans], dtype=np.int64), counts)


@dataclass(frozen=True, slots=True)
class CompletionProgress:
    """How far a completion has come that has not ended."""

    item: int
    """The item's place in the call."""
    sample: int
    """Which of the item's completions, from 0."""
    tokens: int
    """Tokens of it that have been drawn so far."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, type and size of a tensor of the checkpoint."""

    name: str
    dtype: str
    """The type of its numbers: float32, bfloat16 or float16."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SharedPath:
    """Weights in a file that the sampler can read too."""

    path: str | Path
    sha256: bytes
    """SHA-256 over all tensors' bytes, in the order of the specs (of names without specs)."""


@dataclass(frozen=True, slots=True)
class Nccl:
    """Weights that come from the trainer's GPU by NCCL."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """A fixed sequence of T tokens with the trainer's own log-probabilities, at temperature 1."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """Each token's after the first: T - 1 numbers."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """The new weights serve."""

    version: int
    canary_tokens: int
    canary_mean_difference: float
    canary_max_difference: float
    receive_seconds: float
    """Seconds until all bytes were there and checked."""
    pause_seconds: float
    """Seconds in which generation stood still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInfo:
    """What a sampler says of its policy and its load."""

    model: str
    instance: str
    """An id that is made anew at every start of the process."""
    weight_version: int
    """The version that serves; 0 for the weights that it was started with."""
    weight_sha256: bytes
    dtype: str
    max_tokens: int
    """Most tokens of prompt and completion."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    running: int
    waiting: int
    limit: int
    shared_path: bool
    nccl: bool
