"""Items of OpenAI's Responses API as turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.data import Message, read_message, read_tools
from guerdon.serving.errors import InvalidRequest


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
