"""What the gateway's layers hand to each other: the wire above, the two upstreams below.

Pure Python: no protobuf, no HTTP.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from guerdon.serving.errors import Unavailable
from guerdon.serving.prompts import Conversation, FormattedText

VoteWeight = Literal["sigmoid", "score", "one"]
AnswerForm = Literal["boxed", "number", "line"]

OURS = ("guerdon", "best_of", "n", "timeout", "model")
"""Keys of a request that are the gateway's to read, and mean something else behind it."""
RANKS_ONLY = (
    "compares answers with each other and has no score for one: give --reward a model that scores"
)
"""What is wrong with a reward model that only ranks."""


class Strategy(enum.Enum):
    """How many candidates are drawn, and which one is the answer."""

    BEST_OF_N = "best_of_n"
    """Draw all, the highest score wins."""
    THRESHOLD = "threshold"
    """Best of n, until a candidate reaches a score."""
    ADAPTIVE = "adaptive"
    """Draw in waves, while another candidate promises to be better."""
    VOTE = "vote"
    """Weighted majority: the final answer whose candidates have most reward together."""
    SOFT = "soft"
    """Draw the answer among the candidates, by the softmax of their scores."""
    REJECTION = "rejection"
    """Speculative rejection: score candidates while they grow, and stop the weak ones."""
    CASCADE = "cascade"
    """A small reward model decides clear cases, a large one close calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How candidates are drawn."""

    max_tokens: int
    """Most tokens of a candidate."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a candidate, and are no part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    """The caller's request as it came: an OpenAI endpoint gets all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """A prompt, and how answers to it are drawn."""

    prompt: Conversation | FormattedText
    sampling: Sampling
    add_special_tokens: bool = False
    """Whether the policy reads a text behind the tokens with which its tokenizer begins one."""


@dataclass(frozen=True, kw_only=True)
class PlanFields:
    """What may be asked of a call beside its request.

    Which strategy reads which field, and what it may hold, is in `strategies/registry.py`.
    """

    best_of: int = 1
    """Most candidates."""
    strategy: Strategy = Strategy.BEST_OF_N
    model: str = ""
    """The reward model; in a cascade, the large one."""
    threshold: float | None = None
    """The score at which drawing ends."""
    token_budget: int | None = None
    """Most tokens drawn, of all candidates."""
    seconds: float | None = None
    """Time after which no more is drawn."""
    min_gain: float = 0.05
    """Least expected gain, in standard deviations of the scores, of another candidate."""
    temperature: float = 1.0
    """Temperature of the softmax over scores."""
    weight: VoteWeight = "sigmoid"
    """What a candidate's vote weighs, by its score."""
    answer: AnswerForm = "boxed"
    """How the final answer is found in a text."""
    chunk: int = 64
    """Tokens that are drawn between two scorings."""
    keep: float = 0.5
    """The part of the candidates that is kept at each scoring."""
    small_model: str = ""
    """A cascade's small reward model."""
    margin: float = 1.0
    """How far below the small model's best score a candidate is still a close call."""
    timeout: float | None = None
    """Seconds for the whole call."""


@dataclass(frozen=True, kw_only=True)
class Plan(PlanFields):
    """How the best answer is found."""

    n: int = 1
    """Choices that come back, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A candidate as it was drawn, whole or so far."""

    index: int
    """Which candidate, from 0."""
    text: str
    tokens: int
    prompt_tokens: int
    """Tokens of the prompt that it was drawn from."""
    finish_reason: str
    """`stop` or `length`; of an OpenAI endpoint, what it says."""
    ended: bool = True
    """Whether it can't go on: a part of one can."""
    state: Any = None
    """What its drawer needs to go on with it."""
    textless: bool = False
    """Whether an OpenAI endpoint's choice has no text at all: `text` is empty, and has no score."""
    own_prompt: bool = False
    """Whether the prompt was computed for it alone, and not once for all candidates."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What else an OpenAI endpoint's choice says, such as its reasoning."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A candidate that was stopped while it was drawn."""

    index: int
    """Which candidate, from 0."""
    tokens: int | None
    """Tokens of it that were drawn, as last told; None where nobody tells."""


@dataclass(frozen=True, slots=True)
class Score:
    """A finite number, and the model and revision that gave it."""

    value: float
    model: str
    revision: str
    said: Mapping[str, Any] = field(default_factory=dict)
    """What else the model says: its `steps`, `attributes`, `members`, `spread`, if it has any."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """No score, and why: one plain sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft with its score, or with why it has none."""

    draft: Draft
    score: Score | Unscored

    @property
    def value(self) -> float:
        """The score; only of ranked candidates."""
        assert isinstance(self.score, Score)
        return self.score.value

    @property
    def scored(self) -> bool:
        """Whether it can be ranked."""
        return isinstance(self.score, Score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What a strategy found."""

    ranked: tuple[Candidate, ...]
    """Best first; at least one."""
    unranked: tuple[Candidate, ...] = ()
    """Candidates without a score, and parts of candidates that were given up."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else the strategy has to tell, such as the final answer that won a vote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long the parts of a call took."""

    draw: float
    """Until the last candidate that was waited for had ended."""
    score: float
    """What scoring added: from that end until the ranking."""
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedChoices:
    """The choices of a call, best first, and what was done to find them."""

    choices: tuple[Candidate, ...]
    ranked: bool
    """Whether the first choice is the best by reward; else it is the first that was drawn."""
    plan: Plan
    candidates: tuple[Candidate, ...]
    """All that came, whole or as a part, by index."""
    stopped: tuple[Stopped, ...]
    """The others, by index."""
    seconds: Seconds
    interrupted_tokens: int = 0
    """Tokens drawn of candidates that updates of the policy's weights ended."""
    reason: str = ""
    """Why it is not ranked."""
    gain: float | None = None
    """The answer's score less that of candidate 0, where both have one."""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens drawn, of all candidates, as far as they are known."""
        known = sum(each.draft.tokens for each in self.candidates)
        known += sum(each.tokens or 0 for each in self.stopped)
        return known + self.interrupted_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as often as it was computed for candidates that came."""
        drafts = [each.draft for each in self.candidates]
        shared = max((each.prompt_tokens for each in drafts if not each.own_prompt), default=0)
        return shared + sum(each.prompt_tokens for each in drafts if each.own_prompt)


class RankingFailed(Unavailable):
    """No candidate could be ranked: rewards are away, or no score is to be had."""


OnTokens = Callable[[int, int], None]
"""Called with the index of a candidate that is being drawn, and the tokens that it has so far."""


class Drawer(Protocol):
    """Draws candidates from a policy."""

    def draw(
        self,
        request: PolicyRequest,
        indices: Sequence[int],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """Candidates, each as it ends, in any order; all, or an error.

        Closing the generator stops what still runs.

        Args:
            request: what is asked.
            indices: the numbers of the candidates.
            max_tokens: most tokens of each; a draft that reaches them has not ended.
            deadline: on `time.monotonic`'s clock.
            on_tokens: called while candidates are drawn, where the policy tells how far they are.

        Raises:
            Interrupted: an update of the policy's weights ended what had not come.
            ServiceError: the policy can't or won't; the text says why.
        """

    def go_on(
        self,
        request: PolicyRequest,
        drafts: Sequence[Draft],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """Drafts with up to `max_tokens` tokens more each; otherwise as `draw`."""


class Scorer(Protocol):
    """Scores answers by the reward models of a service."""

    async def ranks_only(self, model: str, deadline: float) -> bool:
        """Whether a model has no score for one answer; False where that can't be known now.

        Args:
            model: a name.
            deadline: on `time.monotonic`'s clock.
        """

    async def score(
        self, model: str, request: PolicyRequest, text: str, deadline: float
    ) -> Score | Unscored:
        """The score of one answer; `Unscored` for an answer that has none.

        Args:
            model: a name, or `name@revision`.
            request: what is answered.
            text: the answer.
            deadline: on `time.monotonic`'s clock.

        Raises:
            RankingFailed: the service is away, or refuses all work; the text says why.
            Unsupported: the model has no score for one answer, as a pairwise one.
        """
