"""What the sampler's layers hand to each other: the service above, the engine below.

Pure Python: no torch, no protobuf, no vLLM.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from guerdon.serving.prompts import Prompt, TokenArray


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text that is no user's turn: tokenised as the tokenizer does by itself."""

    text: str
    add_special_tokens: bool = True
    """Begin with the tokens that the tokenizer begins a text with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateItem:
    """One prompt and how many completions it gets."""

    prompt: Prompt | PlainText
    n: int = 1
    seed: int | None = None
    id: str = ""
    drawn: int = 0
    """Tokens at the prompt's end that were drawn before: the completion's text begins with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How completions are drawn."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    ignore_eos: bool = False
    skip_special_tokens: bool = False
    """Leave special tokens out of texts, also of those in which `stop` is looked for."""
    continues_text: bool = False
    """Whether texts go on with the prompt's: decoded behind it, they begin with its space."""
    top_logprobs: int = 0
    """Likeliest tokens in each place whose log-probabilities are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One call: prompts, and how completions of them are drawn."""

    items: Sequence[GenerateItem]
    options: SamplingOptions
    min_version: int = 0
    return_text: bool = False
    report_progress: bool = False
    """Whether the caller wants to know meanwhile how far completions have come."""

    @property
    def completions(self) -> int:
        """Completions of all items."""
        return sum(item.n for item in self.items)


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    """A token that ends it was drawn, which is the last one; or a text that does."""
    LENGTH = "length"
    """`max_tokens`, or the longest sequence, was reached."""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens start … end - 1 were drawn under one version of the weights."""

    version: int
    start: int
    end: int


Alternatives = Sequence[Mapping[int, float]]
"""The likeliest tokens of each place with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One finished completion."""

    index: int
    """Which of its prompt's completions, from 0."""
    token_ids: TokenArray
    logprobs: npt.NDArray[np.float32]
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...]
    stop_text: str = ""
    """Which of `SamplingOptions.stop` ended it; empty where none did."""
    alternatives: Alternatives = ()
    """Empty unless `SamplingOptions.top_logprobs` asks for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tokens by which a completion has grown since the last piece."""

    index: int
    token_ids: TokenArray
    logprobs: npt.NDArray[np.float32]
    alternatives: Alternatives = ()


Grown = Callable[[Piece], None]
"""Gets the pieces of completions as they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine serves, whatever its weights are."""

    model: str
    dtype: str
    max_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, type and size of a tensor of the checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed sequence with the trainer's own log-probabilities."""

    token_ids: TokenArray
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOrder:
    """How staged weights begin to serve."""

    version: int
    reset: bool
    canaries: tuple[Canary, ...]
    mean_tolerance: float
    """0: the engine's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishResult:
    """The figures of an update whose weights serve now."""

    canary_tokens: int
    canary_mean_difference: float
    canary_max_difference: float
    load_seconds: float
    canary_seconds: float
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class NcclSource:
    """The trainer's end of an NCCL group, which broadcasts the tensors."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int


class StagedWeights(Protocol):
    """Tensors that are all there and checked against the model and their checksum."""


class Staging(Protocol):
    """A place for the tensors of one update until they are checked. Touches nothing that serves."""

    async def write(self, tensor: int, offset: int, data: bytes) -> None:
        """Take a piece of a tensor; pieces come in order, tensor after tensor.

        Raises:
            InvalidRequest: out of order, or past the tensor's end; names the tensor.
        """

    async def finish(self, sha256: bytes) -> StagedWeights:
        """Check that every byte came, and the checksum (where the source has one).

        Raises:
            UpdateRefused: bytes are missing, or it is another checksum; names the tensors.
        """

    def close(self) -> None:
        """Free what it holds. Closing twice does nothing."""


class PolicyEngine(Protocol):
    """Draws completions, and takes new weights. Used on one event loop."""

    async def start(self) -> None:
        """Load the policy; everything else is used after this.

        Raises:
            ServiceError: the policy can't be served; the text says why.
        """

    async def shutdown(self) -> None:
        """End it, started or not."""

    @property
    def info(self) -> EngineInfo:
        """What is served."""

    @property
    def version(self) -> int:
        """Version of the weights that serve; 0 for those it was started with."""

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the last update; empty before the first."""

    def load(self) -> tuple[int, int]:
        """Completions that are being drawn, and that wait. (0, 0) before the start."""

    def generate(
        self,
        prompt: TokenArray,
        options: SamplingOptions,
        *,
        n: int,
        seed: int | None,
        grown: Grown | None = None,
    ) -> AsyncGenerator[Completion, None]:
        """The completions of one prompt, each as it ends, in any order.

        Closing the generator, or cancelling who iterates it, stops what still runs. While an
        update stands in the way it waits. `options.max_tokens` may be more than there is room.

        Args:
            grown: gets all tokens of a completion, in pieces, before the completion comes.

        Raises:
            Interrupted: an update with `reset` ended it; or one that was refused did, and tokens
                of it had been given to `grown`.
            Unavailable: the engine died.
            ComputeFailed: the engine failed.
        """

    async def stage_stream(self, specs: tuple[TensorSpec, ...]) -> Staging:
        """Room for tensors that will be written.

        Raises:
            UpdateRefused: names, shapes or dtypes are not the model's; says which.
        """

    async def stage_files(self, files: Sequence[Path], specs: tuple[TensorSpec, ...]) -> Staging:
        """Tensors in safetensors files that are allowed to be read; as `stage_stream`.

        Args:
            specs: what the files hold, or empty for whatever they hold.
        """

    async def stage_nccl(self, source: NcclSource, specs: tuple[TensorSpec, ...]) -> Staging:
        """Tensors that a trainer broadcasts; as `stage_stream`."""

    async def publish(self, staged: StagedWeights, order: PublishOrder) -> PublishResult:
        """Load, compare canaries, switch; or go back to the old weights, whatever happens.

        It is awaited to its end, even if the caller has left.

        Raises:
            UpdateRefused: a canary parts; says by how much.
        """

    async def wait_dead(self) -> str:
        """Return when the engine can draw no more, with the reason."""
