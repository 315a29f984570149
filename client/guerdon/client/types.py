"""What goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guerdon.client.config import Activation
from guerdon.client.errors import GuerdonError, invalid
from guerdon.data import (
    Conversation,
    Message,
    checked_answer,
    read_message,
    read_template_kwargs,
    read_tools,
)

ComputeMode = Literal["unspecified", "packed", "padded", "remote"]
ModelKind = Literal[
    "unspecified",
    "sequence",
    "attributes",
    "process",
    "ensemble",
    "pairwise",
    "implicit",
    "verdict",
    "judge",
]

MAX_TOKEN_ID = 2**32 - 1


@dataclass(frozen=True, slots=True)
class FormattedText:
    """A prompt that is already rendered: tokenised as it stands, nothing added."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens by their number in the model's vocabulary.

    Args:
        ids: integers; a NumPy array or a tensor of one dimension will do.
    """

    ids: Sequence[int]

    def __post_init__(self) -> None:
        raw: Any = self.ids.tolist() if hasattr(self.ids, "tolist") else self.ids
        try:
            ids = tuple(raw)
        except TypeError:
            raise invalid("token_ids", "must be a sequence of integers") from None
        if not ids:
            raise invalid("token_ids", "is empty")
        for place, token in enumerate(ids):
            if type(token) is not int or not 0 <= token <= MAX_TOKEN_ID:
                raise invalid(f"token_ids[{place}]", f"{token!r} is not a token id")
        object.__setattr__(self, "ids", ids)


Prompt = str | Sequence[Mapping[str, object]] | Conversation | FormattedText | TokenIds
"""Text, chat turns (`{"role": …, "content": …}`), turns with tools, rendered text, or token ids."""

Response = str | TokenIds | Mapping[str, object]
"""Text; token ids, after a prompt of token ids; or the assistant's message, where it says more than
a text (`{"role": "assistant", "tool_calls": …}`)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and the responses to it; the prompt is computed once.

    Raises:
        InvalidArgument: a part is missing or of the wrong type.
    """

    prompt: Prompt
    responses: Sequence[Response]
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", check_prompt(self.prompt))
        object.__setattr__(self, "responses", check_responses(self.responses, "responses"))
        if not isinstance(self.id, str):
            raise invalid("id", f"must be text, not {type(self.id).__name__}")


def check_prompt(prompt: Prompt) -> Prompt:
    """The prompt, its turns copied.

    Raises:
        InvalidArgument: it is none.
    """
    if isinstance(prompt, str | FormattedText | TokenIds):
        return prompt
    if not isinstance(prompt, Conversation):
        return _check_messages(prompt, "prompt")
    return Conversation(
        _check_messages(prompt.messages, "prompt.messages"),
        read_tools(prompt.tools, "prompt.tools", invalid),
        read_template_kwargs(prompt.chat_template_kwargs, "prompt.chat_template_kwargs", invalid),
    )


def _check_messages(turns: object, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes | bytearray):
        raise invalid(where, "must be text, messages, Conversation, FormattedText or TokenIds")
    if not turns:
        raise invalid(where, "has no messages")
    return tuple(
        read_message(turn, f"{where}[{i}]", invalid, strict=True) for i, turn in enumerate(turns)
    )


def check_responses(responses: Sequence[Response], where: str) -> tuple[Response, ...]:
    """The responses as a tuple.

    Raises:
        InvalidArgument: there is none, or one is of the wrong type.
    """
    if isinstance(responses, str | bytes | TokenIds | Mapping):
        raise invalid(where, "must be a list of responses, not one response")
    try:
        found = tuple(responses)
    except TypeError:
        raise invalid(where, "must be a list of responses") from None
    if not found:
        raise invalid(where, "is empty")
    return tuple(_check_response(response, f"{where}[{i}]") for i, response in enumerate(found))


def _check_response(response: object, where: str) -> Response:
    if isinstance(response, str | TokenIds):
        return response
    if not isinstance(response, Mapping):
        raise invalid(where, "must be text, TokenIds or the assistant's message")
    return checked_answer(read_message(response, where, invalid, strict=True), where, invalid)


@dataclass(frozen=True, slots=True)
class StepScore:
    """The raw score at one step marker."""

    score: float
    token_index: int
    """The marker's place in the sequence of tokens, from 0, prompt included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model says of one response."""

    score: float
    """The raw score unless asked otherwise; always a finite number."""
    steps: tuple[StepScore, ...] = ()
    """Process reward models: each step's raw score, in order."""
    attributes: Mapping[str, float] = field(default_factory=dict)
    """Models with several attributes: each one's raw value."""
    members: tuple[float, ...] = ()
    """Ensembles: each member's raw score, in the order of `ModelInfo.members`. Judges that score:
    each vote, whose mean the score is."""
    spread: float | None = None
    """Ensembles: the standard deviation (ddof = 0) of `members`, each less what its training mean
    is above the members' average. Judges with several votes: of the votes."""
    token_count: int = 0
    """Tokens of prompt and response that the model saw."""
    reused_tokens: int = 0
    """Tokens of `token_count` that were not computed for it: another response of the batch, or one
    before it, begins with them."""
    truncated_tokens: int = 0
    """Prompt tokens dropped from the left to fit."""
    dropped: tuple[str, ...] = ()
    """What of the conversation the model's chat template left out, so that the score does not
    depend on it: `system_turn`, `developer_turn`, `earlier_reasoning`, `answer_reasoning` or
    `name`."""
    tokens_hash: str = ""
    """A hash of the tokens that the model saw. Responses with the same one are the same to the
    model. Empty from pairwise models."""


@dataclass(frozen=True, slots=True)
class ItemScores:
    """The scores of one item, in the order of its responses."""

    id: str
    scores: tuple[Score, ...]

    @property
    def values(self) -> list[float]:
        """The bare numbers."""
        return [score.score for score in self.scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInfo:
    """What made the numbers."""

    model: str
    """The model's name, after aliases."""
    revision: str
    """A hash over weights, head, tokenizer and template."""
    activation: Activation = "none"
    normalized: bool = False
    mean: float | None = None
    """What was subtracted, if normalised."""
    std: float | None = None
    """What was divided by, if normalised."""
    chat_template_hash: str = ""
    """SHA-256 of the chat template; empty without one."""
    compute_mode: ComputeMode = "unspecified"
    """`unspecified` also when the parts of a large call were computed in both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the parts of a call took, in seconds, as the server measured it.

    For a call that was cut into several requests: the longest `queue`, the sums of `tokenize`
    and `compute`, and `total` from the first sent to the last received, by the client's clock.
    """

    queue: float = 0.0
    tokenize: float = 0.0
    compute: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The scores of a call, all by one revision."""

    items: tuple[ItemScores, ...]
    """Scores of the items, in the order asked."""
    info: ScoringInfo
    timing: Timing

    @property
    def scores(self) -> list[list[float]]:
        """The bare numbers: one list per item, in the order of its responses."""
        return [item.values for item in self.items]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """How one item of a stream ended: either with scores, or with an error."""

    index: int
    """The item's place in what was given, from 0."""
    id: str
    """The item's own id."""
    scores: tuple[Score, ...] | None = None
    """Scores in the order of the item's responses; None if there is an error."""
    error: GuerdonError | None = None
    info: ScoringInfo | None = None
    """What made the numbers; a stream that outlives a promotion sees two revisions, unless it
    asks for `name@revision`."""
    timing: Timing | None = None

    @property
    def values(self) -> list[float]:
        """The bare numbers.

        Raises:
            GuerdonError: the item failed.
        """
        if self.error is not None:
            raise self.error
        assert self.scores is not None
        return [score.score for score in self.scores]


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    """A candidate and its score."""

    index: int
    """The candidate's place among those given, from 0."""
    score: Score


@dataclass(frozen=True, slots=True)
class RankResult:
    """Candidates, best first; equal scores stay in the order given."""

    ranking: tuple[RankedCandidate, ...]
    info: ScoringInfo
    timing: Timing


@dataclass(frozen=True, slots=True)
class AttributeInfo:
    """An attribute of a model and its weight in the score."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A loaded revision of a model."""

    name: str
    revision: str
    current: bool = False
    """Whether the bare name means this revision."""
    aliases: tuple[str, ...] = ()
    kind: ModelKind = "unspecified"
    architecture: str = ""
    base_model: str = ""
    max_tokens: int = 0
    """The longest sequence it takes."""
    dtype: str = ""
    device: str = ""
    compute_mode: ComputeMode = "unspecified"
    compute_mode_reason: str = ""
    """Why it computes padded, when it does."""
    probe_max_difference: float = 0.0
    """Largest difference between its engine and plain transformers, at load time."""
    chat_template_hash: str = ""
    mean: float | None = None
    std: float | None = None
    attributes: tuple[AttributeInfo, ...] = ()
    members: tuple[str, ...] = ()
    aggregation: str = ""
    """Ensembles: how members are combined."""
    step_aggregation: str = ""
    """Process rewards: how steps become one score."""
    step_marker: str = ""
    """Process rewards: the text that ends each step of a response."""
    parameters: int = 0
    template_drops: tuple[str, ...] = ()
    """What its chat template leaves out of conversations; see `Score.dropped`."""
    vocab_hash: str = ""
    """SHA-256 of the vocabulary: token ids mean the same to models with the same hash. Empty where
    token ids can't stand for a conversation."""
    probability: bool = False
    """Whether its scores are probabilities already. They take no activation."""
    ranks_only: bool = False
    """Whether it compares answers with each other and has no score for one: `rank` alone."""

    @property
    def pinned(self) -> str:
        """`name@revision`: asks for exactly this revision, whatever is promoted meanwhile."""
        return f"{self.name}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Promotion:
    """What `promote_model` did."""

    model: ModelInfo
    previous_revision: str
