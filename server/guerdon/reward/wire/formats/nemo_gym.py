"""NeMo Gym's resource servers, which verifiers and NeMo-RL ask: /nemo_gym/verify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import Message, PriorityClass, ScoreItem
from guerdon.reward.wire.formats.format import Asked, ForeignBody, Format, Json
from guerdon.reward.wire.formats.messages import (
    ForeignMessage,
    TextOrMessages,
    content,
    conversation,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class CreateParams(ForeignBody):
    """What the policy was asked, as OpenAI's Responses API takes it."""

    instructions: Text | None = None
    input: TextOrMessages


class OutputEntry(ForeignMessage):
    """A message of the policy's, its reasoning, or a call of a tool."""

    role: Text = "assistant"
    type: Text = Field(default="message", max_length=64)


class PolicyResponse(ForeignBody):
    """What the policy answered, as OpenAI's Responses API gives it."""

    output: Annotated[list[OutputEntry], Field(fail_fast=True)]


class VerifyBody(ForeignBody):
    """A rollout; all of it comes back with its reward."""

    responses_create_params: CreateParams
    response: PolicyResponse
    whole: dict[str, Any] = Field(default={}, exclude=True)
    """The body as it came."""


class SeedSession(Format[ForeignBody]):
    """NeMo Gym's /seed_session: there is nothing to prepare."""

    paths = ("/nemo_gym/seed_session",)
    body = ForeignBody

    def ask(self, body: ForeignBody) -> Asked:
        return Asked(items=[], if_empty={})

    def reply(self, body: ForeignBody, scored: Scored) -> Json:
        return {}


class Verify(Format[VerifyBody]):
    """NeMo Gym's /verify: the body with its reward."""

    paths = ("/nemo_gym/verify",)
    body = VerifyBody
    hold_seconds = 170.0
    items_field = "responses_create_params"
    overload_code = 503
    priority = PriorityClass.BATCH

    def read(self, value: Mapping[str, Json]) -> VerifyBody:
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except ValueError:
            raise InvalidRequest(
                "body", "holds a number that is not finite, or text that is not valid Unicode"
            ) from None
        return super().read(value).model_copy(update={"whole": value})

    def ask(self, body: VerifyBody) -> Asked:
        asked = body.responses_create_params
        turns: tuple[Message, ...]
        if isinstance(asked.input, str):
            turns = (Message("user", asked.input),)
        else:
            turns = conversation(asked.input, "responses_create_params.input")
        if asked.instructions:
            turns = (Message("system", asked.instructions), *turns)
        return Asked(items=[ScoreItem(turns, (_answer(body.response.output),))])

    def reply(self, body: VerifyBody, scored: Scored) -> Json:
        return {**body.whole, "reward": scored.items[0][0].score}

    def field(self, path: str) -> str:
        if path.startswith("items[0].responses"):
            return "response.output"
        return super().field(path).replace("messages", "responses_create_params.input", 1)

    def error(self, status: ErrorStatus) -> Json:
        return {"detail": status.message}


def _answer(output: Sequence[OutputEntry]) -> str:
    """The text of a response's messages; reasoning is no part of it.

    Raises:
        InvalidRequest: it called tools, or said nothing.
    """
    texts = []
    for place, entry in enumerate(output):
        field = f"response.output[{place}]"
        if entry.type == "message":
            texts.append(content(entry, field))
        elif entry.type != "reasoning":
            raise InvalidRequest(f"{field}.type", f"is {entry.type!r}: only messages are scored")
    if not texts:
        raise InvalidRequest("response.output", "holds no message")
    return "".join(texts)
