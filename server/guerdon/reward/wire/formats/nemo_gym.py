"""NeMo Gym's resource servers, which verifiers and NeMo-RL ask: /nemo_gym/verify."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from guerdon.data import Message, as_answer, read_message, read_tools
from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import Conversation, Dropped, PriorityClass, ScoreItem
from guerdon.reward.wire.formats.format import Format, FormatRequest, Json, TextOrMessages
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

    def ask(self, body: ForeignBody) -> FormatRequest:
        return FormatRequest(items=[], if_empty={})

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

    def ask(self, body: VerifyBody) -> FormatRequest:
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
        items = [ScoreItem(prompt, (as_answer(last),))]
        return FormatRequest(items=items, dropped=frozenset(unread))

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


def response_turns(items: Sequence[Mapping[str, Any]], field: str, role: str = "") -> list[Message]:
    """Turns of messages, calls of functions, and what these gave; reasoning is left out.

    A call belongs to the turn of what the assistant says before or after it. In a response, all
    that comes one after another is one turn.

    Args:
        items: in their order.
        field: of the items.
        role: of messages that name none; given for a response.

    Raises:
        InvalidRequest: an item is of another type, or malformed.
    """
    found: list[Message] = []
    for place, item in enumerate(items):
        if item.get("type") == "reasoning":
            continue
        turn = _turn(item, f"{field}[{place}]", role)
        before = found[-1] if found and found[-1]["role"] == turn["role"] == "assistant" else None
        if before and (role or "tool_calls" in before or "tool_calls" in turn):
            turn = _joined(found.pop(), turn)
        found.append(turn)
    return found


def holds_reasoning(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an item is reasoning that can be read."""
    return any(
        item.get("type") == "reasoning" and (item.get("summary") or item.get("content"))
        for item in items
    )


def chat_tools(tools: Sequence[Mapping[str, Any]], field: str) -> tuple[Mapping[str, Any], ...]:
    """Tools in the form of the Chat Completions API, which chat templates take.

    Raises:
        InvalidRequest: one is no function with a name.
    """
    functions = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        if "function" not in tool and tool.get("type") == "function"
        else tool
        for tool in tools
    ]
    return read_tools(functions, field, InvalidRequest)


def _turn(item: Mapping[str, Any], field: str, role: str) -> Message:
    kind = item.get("type") or "message"
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "function": function}
        item = {"role": "assistant", "content": None, "tool_calls": [call]}
    elif kind == "function_call_output":
        item = {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    elif kind != "message":
        raise InvalidRequest(
            f"{field}.type", f"is {str(kind)[:64]!r}: only messages and calls of functions are read"
        )
    return read_message({"role": role, **item}, field, InvalidRequest)


def _joined(first: Message, second: Message) -> Message:
    """Two turns of an assistant as one."""
    said = [turn["content"] for turn in (first, second) if turn["content"] is not None]
    found: Message = {**first, **second, "content": "".join(said) if said else None}
    thought = [turn.get("reasoning_content", "") for turn in (first, second)]
    if any(thought):
        found["reasoning_content"] = "\n".join(filter(None, thought))
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    if calls:
        found["tool_calls"] = calls
    return found
