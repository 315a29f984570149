"""NeMo Gym's resource servers, which verifiers and NeMo-RL ask: /nemo_gym/verify."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from guerdon.data import answer_of
from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import Conversation, Dropped, Message, PriorityClass, ScoreItem
from guerdon.reward.wire.formats.format import Asked, Format, Json
from guerdon.reward.wire.formats.messages import TextOrMessages
from guerdon.reward.wire.formats.response_items import chat_tools, holds_reasoning, response_turns
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import ForeignBody, Messages
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class CreateParams(ForeignBody):
    """What the policy was asked, as OpenAI's Responses API takes it."""

    instructions: Text | None = None
    input: TextOrMessages
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


class PolicyResponse(ForeignBody):
    """What the policy answered, as OpenAI's Responses API gives it."""

    output: Messages


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
        output = body.response.output
        answered = response_turns(output, "response.output", "assistant")
        if not answered:
            raise InvalidRequest("response.output", "holds no message and no call of a function")
        *between, last = answered
        if last["role"] != "assistant":
            raise InvalidRequest("response.output", "must end with what the policy said")
        asked = body.responses_create_params
        tools = chat_tools(asked.tools or (), f"{self.items_field}.tools")
        prompt = Conversation((*_asked_turns(asked), *between), tools)
        unread = set()
        if holds_reasoning(output):
            unread.add(Dropped.ANSWER_REASONING)
        if not isinstance(asked.input, str) and holds_reasoning(asked.input):
            unread.add(Dropped.EARLIER_REASONING)
        items = [ScoreItem(prompt, (answer_of(last),))]
        return Asked(items=items, dropped=frozenset(unread))

    def reply(self, body: VerifyBody, scored: Scored) -> Json:
        return {**body.whole, "reward": scored.items[0][0].score}

    def field(self, path: str) -> str:
        if path.startswith("items[0].responses"):
            return "response.output"
        found = super().field(path)
        if found.startswith("tools"):
            return f"responses_create_params.{found}"
        return found.replace("messages", "responses_create_params.input", 1)

    def error(self, status: ErrorStatus) -> Json:
        return {"detail": status.message}


def _asked_turns(asked: CreateParams) -> list[Message]:
    said = []
    if asked.instructions:
        said.append(Message(role="system", content=asked.instructions))
    if isinstance(asked.input, str):
        return [*said, Message(role="user", content=asked.input)]
    turns = response_turns(asked.input, "responses_create_params.input")
    if not turns:
        raise InvalidRequest("responses_create_params.input", "must have at least one message")
    return said + turns
