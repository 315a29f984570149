"""The JSON twins of the messages, for the HTTP side.

A response is text, `{"token_ids": […]}` after a prompt of token ids, or the assistant's message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from guerdon.data import checked_answer
from guerdon.reward import types
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.wire import convert
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.schemas import (
    MAX_UINT32,
    TIMEOUT,
    Body,
    MessageBody,
    PromptBody,
    Text,
    TokenIdsBody,
    as_message,
    as_prompt,
)
from guerdon.serving.wire.convert import check_id, field_values


def _response_form(value: Any) -> str:
    if isinstance(value, MessageBody) or (isinstance(value, dict) and "role" in value):
        return "@message"
    return "@tokens" if isinstance(value, dict | TokenIdsBody) else "@text"


ResponseBody = Annotated[
    Annotated[Text, Tag("@text")]
    | Annotated[TokenIdsBody, Tag("@tokens")]
    | Annotated[MessageBody, Tag("@message")],
    Discriminator(_response_form),
]


class ItemBody(Body):
    """One prompt with one or more responses; the prompt is computed once."""

    id: Text = Field(default="", description="Comes back with the scores.")
    prompt: PromptBody
    responses: list[ResponseBody] = Field(min_length=1, fail_fast=True)


class OptionsBody(Body):
    """How to score, apart from what."""

    priority: Literal["online", "batch"] = "online"
    truncation: Literal["reject", "prompt_left"] = "reject"
    activation: Literal["none", "sigmoid"] = "none"
    normalize: bool = False
    reject_dropped_text: bool = Field(
        default=False, description="Refuse conversations that the chat template shows in part."
    )
    reject_control_tokens: bool = Field(
        default=False, description="Refuse texts that spell a control token of the model."
    )

    def to_domain(self) -> types.ScoreOptions:
        """The options as the service takes them."""
        return types.ScoreOptions(
            priority=types.PriorityClass(self.priority),
            truncation=types.Truncation(self.truncation),
            activation=types.Activation(self.activation),
            normalize=self.normalize,
            reject_dropped_text=self.reject_dropped_text,
            reject_control_tokens=self.reject_control_tokens,
        )


class ScoreBody(Body):
    """Request of POST /v1/score."""

    model: Text = Field(min_length=1, description="A name, an alias, or name@revision.")
    items: list[ItemBody] = Field(min_length=1, fail_fast=True)
    options: OptionsBody = OptionsBody()
    timeout: float | None = TIMEOUT


class RankBody(Body):
    """Request of POST /v1/rank."""

    model: Text = Field(min_length=1, description="A name, an alias, or name@revision.")
    prompt: PromptBody
    candidates: list[ResponseBody] = Field(min_length=1, fail_fast=True)
    top_n: int = Field(
        default=0, ge=0, le=MAX_UINT32, description="How many to return; all when 0."
    )
    options: OptionsBody = OptionsBody()
    timeout: float | None = TIMEOUT


class StepReply(BaseModel):
    """The raw score at a step marker."""

    score: float
    token_index: int


class AttributeReply(BaseModel):
    """An attribute's raw value."""

    name: str
    value: float


class ScoreReply(BaseModel):
    """What a model says of one response."""

    score: float
    steps: list[StepReply] = []
    attributes: list[AttributeReply] = []
    members: list[float] = []
    spread: float | None = None
    token_count: int
    reused_tokens: int
    truncated_tokens: int
    dropped: list[str] = []
    tokens_hash: str = ""


class ItemReply(BaseModel):
    """The scores of one item, in the order of its responses."""

    id: str
    scores: list[ScoreReply]


class InfoReply(BaseModel):
    """What made the numbers."""

    model: str
    revision: str
    activation: str
    normalized: bool
    mean: float | None = None
    std: float | None = None
    chat_template_hash: str
    compute_mode: str


class TimingReply(BaseModel):
    """The times that a call took, in seconds."""

    queue: float
    tokenize: float
    compute: float
    total: float


class ScoreBodyReply(BaseModel):
    """Reply of POST /v1/score."""

    items: list[ItemReply]
    info: InfoReply
    timing: TimingReply


class RankedReply(BaseModel):
    """A candidate, by its place in the request, and its score."""

    index: int
    score: ScoreReply


class RankBodyReply(BaseModel):
    """Reply of POST /v1/rank, best first."""

    ranking: list[RankedReply]
    info: InfoReply
    timing: TimingReply


class ModelReply(BaseModel):
    """A loaded revision."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    revision: str
    current: bool
    aliases: list[str]
    kind: str
    architecture: str
    base_model: str
    max_tokens: int
    dtype: str
    device: str
    compute_mode: str
    compute_mode_reason: str
    probe_max_difference: float
    chat_template_hash: str
    mean: float | None
    std: float | None
    attributes: dict[str, float]
    members: list[str]
    aggregation: str
    step_aggregation: str
    step_marker: str
    parameters: int
    template_drops: list[str]
    vocab_hash: str
    probability: bool
    ranks_only: bool


class OpenAIModel(BaseModel):
    """A model as OpenAI's clients list it."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When it was loaded, in seconds since 1970.")
    owned_by: Literal["guerdon"]


class ModelsReply(BaseModel):
    """Reply of GET /v1/models."""

    models: list[ModelReply]
    object: Literal["list"] = "list"
    data: list[OpenAIModel] = Field(description="The names that are served, for OpenAI's clients.")


def check_counts(value: Any, limits: RequestLimits) -> None:
    """Refuse parsed JSON with too many items or responses, before a model looks at each."""
    if not isinstance(value, dict):
        return
    items, candidates = value.get("items"), _count(value, "candidates")
    if isinstance(items, list) and items:
        convert.check_item_counts([_count(item, "responses") for item in items], limits)
    if candidates:
        convert.check_response_count("candidates", candidates, limits)


def _count(value: Any, key: str) -> int:
    found = value.get(key) if isinstance(value, dict) else None
    return len(found) if isinstance(found, list) else 0


def to_item(body: ItemBody, limits: RequestLimits, field: str) -> types.ScoreItem:
    """One item in the domain's terms; `field` is its path in the request."""
    check_id(f"{field}.id", body.id, limits.max_id_length)
    return _item(
        body.prompt, f"{field}.prompt", body.responses, limits, f"{field}.responses", body.id
    )


def to_items(body: ScoreBody, limits: RequestLimits) -> list[types.ScoreItem]:
    """The items of a request in the domain's terms."""
    convert.check_item_counts([len(item.responses) for item in body.items], limits)
    return [to_item(item, limits, f"items[{i}]") for i, item in enumerate(body.items)]


def to_candidates(body: RankBody, limits: RequestLimits) -> types.ScoreItem:
    """What is to be ranked, as one item."""
    return _item(body.prompt, "prompt", body.candidates, limits, "candidates")


def _item(
    prompt: Any, field: str, responses: list[Any], limits: RequestLimits, at: str, name: str = ""
) -> types.ScoreItem:
    convert.check_response_count(at, len(responses), limits)
    is_tokens = isinstance(prompt, TokenIdsBody)
    return types.ScoreItem(
        prompt=as_prompt(prompt, field),
        responses=tuple(
            _response(body, f"{at}[{i}]", is_tokens) for i, body in enumerate(responses)
        ),
        id=name,
    )


def _response(
    body: str | TokenIdsBody | MessageBody, field: str, is_tokens: bool
) -> types.Response:
    if isinstance(body, TokenIdsBody) != is_tokens:
        raise InvalidRequest(field, convert.MIXED_FORMS)
    if isinstance(body, TokenIdsBody):
        return np.asarray(body.token_ids, dtype=np.int32)
    if isinstance(body, str):
        return body
    return checked_answer(as_message(body, field), field, InvalidRequest)


def score_reply(score: types.ResponseScore, info: types.ModelInfo) -> ScoreReply:
    """What a model says of one response."""
    other = {
        "steps": [field_values(step) for step in score.steps],
        "attributes": [
            {"name": a.name, "value": v}
            for a, v in zip(info.attributes, score.attributes, strict=False)
        ],
    }
    return ScoreReply(**field_values(score) | other)


def info_reply(scored: Scored) -> InfoReply:
    """What made the numbers."""
    info, options = scored.info, scored.options
    return InfoReply(
        model=info.name,
        revision=info.revision,
        activation=options.activation.value,
        normalized=options.normalize,
        mean=info.mean if options.normalize else None,
        std=info.std if options.normalize else None,
        chat_template_hash=info.chat_template_hash,
        compute_mode=info.compute_mode.value,
    )


def timing_reply(scored: Scored, total: float) -> TimingReply:
    """The times that a call took; `total` is in seconds."""
    return TimingReply(
        queue=scored.queue_seconds,
        tokenize=scored.tokenize_seconds,
        compute=scored.compute_seconds,
        total=total,
    )


def model_reply(info: types.ModelInfo, *, current: bool, aliases: tuple[str, ...]) -> ModelReply:
    """A loaded revision."""
    other = {
        "kind": info.kind.value,
        "compute_mode": info.compute_mode.value,
        "attributes": {a.name: a.weight for a in info.attributes},
    }
    return ModelReply(current=current, aliases=list(aliases), **field_values(info) | other)
