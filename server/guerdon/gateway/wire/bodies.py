"""Requests as the gateway reads them: OpenAI's bodies, and what is asked of the gateway in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PrivateAttr

from guerdon.gateway.plans import PartialPlan
from guerdon.gateway.types import PolicyRequest, Sampling
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import read_body
from guerdon.serving.http.schemas import MAX_UINT32
from guerdon.serving.openai.bodies import (
    ChatBody,
    CompletionBody,
    SamplingBody,
    check_left_out,
    check_neutral,
    read_conversation,
)
from guerdon.serving.openai.replies import Json
from guerdon.serving.prompts import Conversation, FormattedText

_CONTINUED = (
    "echo",
    "suffix",
    "continue_final_message",
    "add_generation_prompt",
    "documents",
    "chat_template",
    "truncate_prompt_tokens",
    "prompt_embeds",
)
"""Keys with which what a policy continues is not the prompt that reward models read."""
_TEXT_PARTS = ("text", "input_text", "output_text")


class GatewayBody(SamplingBody):
    """What all requests have."""

    _value: dict[str, Any] = PrivateAttr(default_factory=dict)
    _partial_plan: PartialPlan = PrivateAttr(default_factory=PartialPlan)
    _why_passed: str = PrivateAttr(default="")

    @property
    def value(self) -> dict[str, Any]:
        """The body's JSON as it came."""
        return self._value

    @property
    def partial_plan(self) -> PartialPlan:
        """What is asked of the gateway."""
        return self._partial_plan

    @property
    def why_passed(self) -> str:
        """Why it is passed on as it is; empty where it is not."""
        return self._why_passed


class PassedChat(GatewayBody):
    """A chat that is passed on: of it is read what bounds it alone."""

    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_UINT32)

    @property
    def most(self) -> int | None:
        """The most tokens that it asks for, None where it doesn't say."""
        return max(self.max_tokens or 0, self.max_completion_tokens or 0) or None


class RankedChat(GatewayBody, ChatBody):
    """A chat whose answers are ranked."""


class RankedText(GatewayBody, CompletionBody):
    """A text whose completions are ranked."""


def read_request(
    kind: type[RankedChat | RankedText], value: Json, partial: PartialPlan, *, neutral: bool
) -> GatewayBody:
    """A body's JSON as its model.

    Args:
        kind: of a request that is ranked.
        value: the JSON.
        partial: what is asked of the gateway.
        neutral: whether what a Guerdon sampler can't do is refused.

    Raises:
        InvalidRequest: names the first field at fault.
    """
    why = why_passed(value) if kind is RankedChat else ""
    body: GatewayBody
    if why:
        known = ("n", "stream", "timeout", "model", "max_tokens", "max_completion_tokens")
        body = read_body(PassedChat, {key: value[key] for key in known if key in value})
        if body.n != 1:
            raise InvalidRequest("n", f"is {body.n}: a request that {why} has one choice here")
    else:
        if value.get("tools") or value.get("functions"):
            raise InvalidRequest("tools", "can't be had of a text completion: ask for a chat")
        check_left_out(value, _CONTINUED)
        if neutral:
            check_neutral(value)
        ranked = read_body(kind, {**value, "tool_choice": None, "tools": None})
        _check_told(ranked)
        body = ranked
    body._value, body._partial_plan, body._why_passed = value, partial, why
    body.timeout = partial.timeout if partial.timeout is not None else body.timeout
    return body


def why_passed(value: Mapping[str, Any]) -> str:
    """Why a request is not ranked: it has tools, or parts that are no text. Empty for others."""
    if value.get("tools") or value.get("functions"):
        return "has tools"
    messages = value.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in _TEXT_PARTS:
                return f"has a part of type {kind!r:.40}"
    return ""


def _check_told(body: RankedChat | RankedText) -> None:
    """Refuse what would have to be told of tokens that the gateway doesn't see."""
    if body.logprobs is not None and body.logprobs is not False:
        raise InvalidRequest("logprobs", "can't be told of ranked answers: leave it out")
    if body.return_token_ids:
        raise InvalidRequest("return_token_ids", "can't be told of ranked answers: leave it out")


def read_policy_request(body: GatewayBody, default_tokens: int) -> PolicyRequest:
    """What a request asks of the policy.

    Args:
        body: of a request that is ranked.
        default_tokens: of a candidate, where the request doesn't say.

    Raises:
        InvalidRequest: names the field at fault.
    """
    prompt: Conversation | FormattedText
    most, special = body.max_tokens, False
    if isinstance(body, RankedChat):
        prompt = read_conversation(body)
        most = body.max_completion_tokens or most
    else:
        assert isinstance(body, RankedText)
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise InvalidRequest("prompt", "must be one text: reward models read its completions")
        prompt, special = FormattedText(texts[0]), body.add_special_tokens
    return PolicyRequest(
        prompt=prompt,
        add_special_tokens=special,
        sampling=Sampling(
            max_tokens=most or default_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=max(body.top_k, 0),
            stop=body.stops,
            stop_token_ids=tuple(body.stop_token_ids),
            ignore_eos=body.ignore_eos,
            skip_special_tokens=body.skip_special_tokens,
            seed=body.seed,
            body=body.value,
        ),
    )
