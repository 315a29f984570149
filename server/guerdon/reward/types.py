"""What the layers of the reward service hand to each other.

    wire ─ ScoreItem ─▶ service ─ RewardModel.encode ─▶ EncodedItem ─▶ scheduler
    wire ◀─ ResponseScore ─ service ◀──────────── RewardModel.score ◀────┘

Pure Python: no torch, no protobuf, no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from guerdon.data import Dropped as Dropped
from guerdon.serving.prompts import Conversation as Conversation
from guerdon.serving.prompts import FormattedText as FormattedText
from guerdon.serving.prompts import Message as Message
from guerdon.serving.prompts import Prompt as Prompt
from guerdon.serving.prompts import TokenArray as TokenArray


class PriorityClass(enum.Enum):
    """Which queue work waits in."""

    ONLINE = "online"
    BATCH = "batch"


class Truncation(enum.Enum):
    """What to do with a sequence that is too long for the model."""

    REJECT = "reject"
    PROMPT_LEFT = "prompt_left"


class Activation(enum.Enum):
    """A function applied to the raw score."""

    NONE = "none"
    SIGMOID = "sigmoid"


class ModelKind(enum.Enum):
    """What kind of reward a model gives."""

    SEQUENCE = "sequence"
    ATTRIBUTES = "attributes"
    PROCESS = "process"
    ENSEMBLE = "ensemble"
    PAIRWISE = "pairwise"
    IMPLICIT = "implicit"
    VERDICT = "verdict"
    JUDGE = "judge"


class ComputeMode(enum.Enum):
    """How sequences share a batch."""

    PACKED = "packed"
    PADDED = "padded"
    REMOTE = "remote"
    """Not computed here: another server is asked."""


Response = str | Message | TokenArray
"""Text; the assistant's turn, where it says more than a text; or (only after a prompt of token ids)
token ids."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text that is no conversation: tokenised with the special tokens its tokenizer adds."""

    text: str


class Unrendered(enum.Enum):
    """What a text is where it is no rendered conversation."""

    FORMATTED = "formatted"
    """Nothing is added."""
    PLAIN = "plain"
    """A text by itself, as `PlainText`."""
    USER = "user"
    """What a user said."""


@dataclass(frozen=True, slots=True)
class ForeignText:
    """Text or token ids as another system's client sends them: rendered by a template, or not.

    A rendered conversation is told by what the model's own template writes before an answer. Its
    responses may be one empty text, where the client does not say where its answer begins.
    """

    text: str | TokenArray
    otherwise: Unrendered
    """What the text is if it is no rendered conversation."""
    complete: bool = True
    """Add what the template writes before and after a conversation where it is missing."""


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One prompt and its responses, as asked."""

    prompt: Prompt | PlainText | ForeignText
    responses: tuple[Response, ...]
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """How to score, apart from what."""

    priority: PriorityClass = PriorityClass.ONLINE
    truncation: Truncation = Truncation.REJECT
    activation: Activation = Activation.NONE
    normalize: bool = False
    reject_dropped_text: bool = False
    """Refuse conversations of which the chat template leaves text out."""
    reject_control_tokens: bool = False
    """Refuse texts that spell a control token of the model."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedItem:
    """One prompt and its responses as tokens; what the scheduler packs and the engine computes.

    The sequence of response i is `prefix` followed by `suffixes[i]`. The prefix is the longest run
    of tokens that all sequences share, short of the last token of the shortest one: every suffix
    has at least one token. A single response shares with nobody: its prefix is empty.
    """

    prefix: TokenArray
    suffixes: tuple[TokenArray, ...]
    truncated: tuple[int, ...]
    """Prompt tokens dropped from the left, for each response."""
    readout: tuple[npt.NDArray[np.int64], ...] = ()
    """Process rewards: places of the step markers in each sequence, from 0. Gated models: the
    one place where the gate reads. Pairwise: places of the marks before the prompt and either
    candidate. Implicit rewards: places of the response's tokens, never 0. Else empty. A place may
    lie in the prefix, as when responses begin with the same step."""
    token_types: tuple[TokenArray, ...] = ()
    """Encoders that read text pairs: the `token_type_ids` of each whole sequence (prefix
    included), to be passed to the model beside `input_ids`. Empty when the model has none,
    or all are 0, which is the model's own default."""
    candidates: tuple[int, ...] = ()
    """Pairwise: the tokens of each candidate with its prompt. The sequences then are not
    responses but `guerdon.reward.encoding.comparisons.ordered_pairs` of them. Else empty."""
    dropped: tuple[tuple[Dropped, ...], ...] = ()
    """What the chat template left out, for each response; empty where it left nothing out."""
    hashes: tuple[str, ...] = ()
    """Hashes of each whole sequence's tokens, in hexadecimal; empty for comparisons."""

    @property
    def tokens(self) -> int:
        """Tokens that the engine computes for it when the prefix is computed once."""
        return len(self.prefix) + sum(len(suffix) for suffix in self.suffixes)

    @property
    def sequences(self) -> int:
        """Responses in it."""
        return len(self.suffixes)

    def lengths(self) -> list[int]:
        """Full length in tokens of each sequence, prefix included."""
        return [len(self.prefix) + len(suffix) for suffix in self.suffixes]

    def part(self, start: int, stop: int) -> EncodedItem:
        """The responses from `start` to `stop` alone, with the same prefix."""
        return self.select(range(start, stop))

    def select(self, places: Sequence[int]) -> EncodedItem:
        """Some of the responses alone, with the same prefix."""
        return EncodedItem(
            prefix=self.prefix,
            suffixes=tuple(self.suffixes[j] for j in places),
            truncated=tuple(self.truncated[j] for j in places),
            readout=tuple(self.readout[j] for j in places) if self.readout else (),
            token_types=tuple(self.token_types[j] for j in places) if self.token_types else (),
        )


@dataclass(frozen=True, slots=True)
class StepScore:
    """The raw score at one step marker."""

    score: float
    token_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseScore:
    """What a model says of one response. Every number is raw."""

    score: float
    steps: tuple[StepScore, ...] = ()
    attributes: tuple[float, ...] = ()
    """Values in the order of `ModelInfo.attributes`."""
    members: tuple[float, ...] = ()
    """Scores in the order of `ModelInfo.members`, or the votes of a judge."""
    spread: float | None = None
    token_count: int = 0
    reused_tokens: int = 0
    truncated_tokens: int = 0
    dropped: tuple[Dropped, ...] = ()
    """What the chat template left out of the conversation."""
    tokens_hash: str = ""
    """A hash of the tokens that were scored; empty for a pairwise model."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a model and its weight in the score.

    The weight is 0 where the model weighs its attributes anew for each input.
    """

    name: str
    weight: float


DEFAULT_LABEL = "LABEL_0"
"""How `transformers` names an output that has no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a loaded revision. Constant for its life."""

    name: str
    revision: str
    kind: ModelKind
    architecture: str
    max_tokens: int
    dtype: str
    device: str
    compute_mode: ComputeMode
    compute_mode_reason: str = ""
    probe_max_difference: float = 0.0
    preemptible: bool = False
    """Whether a batch stands aside between its layers for one that is more urgent."""
    prefix_cache_tokens: int = 0
    """Tokens that its prefix cache holds, the smallest one where it has several; 0 without any."""
    chat_template_hash: str = ""
    base_model: str = ""
    mean: float | None = None
    std: float | None = None
    attributes: tuple[Attribute, ...] = ()
    members: tuple[str, ...] = ()
    aggregation: str = ""
    step_aggregation: str = ""
    step_marker: str = ""
    """The text that ends each step of a response; empty unless it gives process rewards."""
    parameters: int = 0
    template_drops: tuple[Dropped, ...] = ()
    """What the chat template leaves out of conversations, as far as samples show."""
    regression: bool = False
    """Whether the checkpoint says that its number is no logit (`problem_type`, or an activation of
    sentence-transformers)."""
    label: str = DEFAULT_LABEL
    """What the checkpoint calls its output (`id2label`), if it has one alone."""
    vocab_hash: str = ""
    probability: bool = False
    """Whether a score is a probability already, which no activation turns into one again."""
    ranks_only: bool = False
    """Whether it compares answers with each other and has no score for one."""

    @property
    def revision_label(self) -> str:
        """The revision's first 12 characters, as logs and metrics show it."""
        return self.revision[:12]


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one call of `RewardModel.score` really computed, for the metrics."""

    computed_tokens: int
    """Tokens through the linear layers, padding included."""
    padding_tokens: int
    """Padding among the computed tokens."""
    reused_tokens: int
    """Tokens that a sequence did not have to compute, because another one or an earlier batch
    begins with them."""
    sequences: int
    cached_tokens: int = 0
    """Tokens whose keys and values came from the prefix cache, each once."""
    seconds: float | None = None
    """How long it was computed, without what was between its layers; None if not measured."""

    def __add__(self, other: BatchStats) -> BatchStats:
        """Both together."""
        return BatchStats(
            computed_tokens=self.computed_tokens + other.computed_tokens,
            padding_tokens=self.padding_tokens + other.padding_tokens,
            reused_tokens=self.reused_tokens + other.reused_tokens,
            sequences=self.sequences + other.sequences,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores of a batch: one list per item, in the items' order of responses."""

    items: list[list[ResponseScore]]
    stats: BatchStats


class RewardModel(Protocol):
    """A loaded revision of whatever gives rewards.

    This is all that the service, the scheduler and the metrics know of a model. A
    sequence classifier, a process reward model, an ensemble, an implicit reward from
    two policies, or a verifier without any network fits behind it.
    """

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """Render and tokenise; called from several threads at once.

        Args:
            item: as asked.
            truncation: what to do with what is too long.
            reject_control_tokens: refuse texts that spell a control token.

        Raises:
            InvalidRequest: with the field's path below the item (`prompt.token_ids`, …).
        """

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        """Compute one batch; called from engine threads only, from one at a time for each engine.

        Args:
            items: of the batch.
            engine: which one computes it, where there are several.
            preempting: between the layers of the (preemptible) batch in hand; one at a time.

        Raises:
            EngineOutOfMemory: the batch is too large; half of it may fit.
            EngineLost: its engine has ended, and may be started anew.
            DeviceLost: no batch can be computed any more.
            Exception: the batch failed; its callers are told so.
        """

    def close(self) -> None:
        """Free the memory. Called once, after the last `score`."""


class EngineOutOfMemory(Exception):
    """A batch did not fit in memory."""


class DeviceLost(Exception):
    """The device computes nothing any more in this process, which must be started anew."""


class EngineLost(Exception):
    """The process that computed a model has ended."""


class EngineKeeper(Protocol):
    """Starts engines, each of which computes a batch at a time, anew when they have ended."""

    on_end: Callable[[int], None]
    """Called on any thread when an engine has ended, whoever ended it."""

    @property
    def engines(self) -> int:
        """How many there are; they are numbered from 0."""

    def lost(self, engine: int) -> bool:
        """Whether an engine can't compute until `restore`."""

    def restore(self, engine: int) -> None:
        """Start an engine anew, and load its models; blocks, on an engine thread.

        Raises:
            DeviceLost: it can't be.
        """

    def kill(self, engine: int) -> None:
        """End an engine whose batch hangs: `score` raises `EngineLost`. From any thread."""

    def close(self) -> None:
        """End the engines for good, and a `restore` that goes on. From any thread."""
