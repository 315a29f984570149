"""The JSON twins of the sampler's messages, for the HTTP side."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from guerdon.sampler import types
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn
from guerdon.sampler.wire.convert import completion_fields
from guerdon.serving.http.schemas import (
    MAX_UINT32,
    MAX_UINT64,
    TIMEOUT,
    Body,
    PromptBody,
    Text,
    as_prompt,
)
from guerdon.serving.wire.convert import check_count
from guerdon.v1 import policy_pb2


class ItemBody(Body):
    """A prompt and how many completions it gets; they share its computation."""

    id: Text = Field(default="", description="Comes back with each completion.")
    prompt: PromptBody
    n: int = Field(default=1, ge=1, le=MAX_UINT32, description="Completions.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_UINT64,
        description="Makes the draw repeatable under the same weights.",
    )
    drawn: int = Field(
        default=0,
        ge=0,
        le=MAX_UINT32,
        description="Tokens at the end of a prompt of token ids that were drawn before: the "
        "completion's text begins with theirs.",
    )


class OptionsBody(Body):
    """How completions are drawn."""

    max_tokens: int = Field(ge=1, le=MAX_UINT32, description="Most tokens of a completion.")
    temperature: float = Field(default=1.0, description="0 takes the likeliest token.")
    top_p: float = Field(default=1.0, description="Less than 1 biases importance ratios.")
    top_k: int = Field(default=0, ge=0, le=MAX_UINT32, description="All tokens when 0.")
    stop_token_ids: list[int] = Field(default_factory=list, fail_fast=True)
    stop: list[Text] = Field(
        default_factory=list, fail_fast=True, description="Texts that end a completion."
    )
    ignore_eos: bool = False


class GenerateBody(Body):
    """Request of POST /v1/generate."""

    items: list[ItemBody] = Field(min_length=1, fail_fast=True)
    options: OptionsBody
    min_version: int = Field(
        default=0,
        ge=0,
        le=MAX_UINT64,
        description="Refuse when the weights are of an older version.",
    )
    return_text: bool = Field(default=True, description="Return each completion's text too.")
    skip_special_tokens: bool = Field(
        default=False, description="Leave special tokens out of texts."
    )
    timeout: float | None = TIMEOUT

    def to_request(self) -> types.GenerateRequest:
        """The request as the service takes it."""
        options = self.options
        return types.GenerateRequest(
            items=[
                types.GenerateItem(
                    prompt=as_prompt(item.prompt, f"items[{place}].prompt"),
                    n=item.n,
                    seed=item.seed,
                    id=item.id,
                    drawn=item.drawn,
                )
                for place, item in enumerate(self.items)
            ],
            options=types.SamplingOptions(
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                stop_token_ids=tuple(options.stop_token_ids),
                stop=tuple(options.stop),
                ignore_eos=options.ignore_eos,
                skip_special_tokens=self.skip_special_tokens,
            ),
            min_version=self.min_version,
            return_text=self.return_text,
        )


def check_counts(value: Any, limits: RequestLimits) -> None:
    """Refuse parsed JSON with too many items, before a model looks at each."""
    items = value.get("items") if isinstance(value, dict) else None
    if isinstance(items, list):
        check_count("items", len(items), limits.max_items)


class SpanReply(BaseModel):
    """Tokens that were drawn under one version of the weights."""

    version: int
    start: int
    end: int


class CompletionReply(BaseModel):
    """One finished completion."""

    item: int = Field(description="The item's place in the request.")
    id: str
    sample: int = Field(description="Which of the item's completions, from 0.")
    token_ids: list[int]
    logprobs: list[float] = Field(
        description="Under the distribution that each token was drawn from."
    )
    finish_reason: Literal["stop", "length"]
    spans: list[SpanReply]
    stop_text: str | None = Field(description="The text in `stop` that ended it, if one did.")
    text: str | None
    prompt_token_ids: list[int]


class GenerateReply(BaseModel):
    """Reply of POST /v1/generate: every completion, by item and sample."""

    completions: list[CompletionReply]


class PolicyReply(BaseModel):
    """Reply of GET /v1/policy."""

    model: str
    instance: str = Field(description="Made anew at every start of the process.")
    weight_version: int
    weight_sha256: str = Field(description="Of the last update, hexadecimal; empty before it.")
    dtype: str
    max_tokens: int = Field(description="Of prompt and completion.")
    vocab_size: int
    eos_token_ids: list[int]
    running: int
    waiting: int
    limit: int
    shared_path: bool
    nccl: bool


def completion_reply(drawn: Drawn, *, text: bool) -> CompletionReply:
    """A completion."""
    return CompletionReply(
        finish_reason=drawn.completion.finish_reason.value,
        text=drawn.text if text else None,
        **completion_fields(drawn),
    )


def policy_reply(message: policy_pb2.GetPolicyResponse) -> PolicyReply:
    """The status as JSON."""
    fields = {name: getattr(message, name) for name in PolicyReply.model_fields}
    fields |= {
        "weight_sha256": message.weight_sha256.hex(),
        "eos_token_ids": list(message.eos_token_ids),
    }
    return PolicyReply(**fields)
