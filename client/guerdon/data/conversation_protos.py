"""Conversations as messages of `guerdon.v1`. Imported by itself: it needs protobuf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guerdon.data.json_values import Fail
from guerdon.data.messages import (
    Conversation,
    Message,
    read_message,
    read_template_kwargs,
    read_tools,
)
from guerdon.v1 import common_pb2


def message_to_proto(turn: Message) -> common_pb2.ChatMessage:
    """A turn as a message."""
    calls = [
        common_pb2.ToolCall(
            id=call.get("id", ""),
            name=call["function"]["name"],
            arguments=_json(call["function"]["arguments"]),
        )
        for call in turn.get("tool_calls", ())
    ]
    return common_pb2.ChatMessage(
        role=turn["role"],
        content=turn["content"],
        name=turn.get("name", ""),
        reasoning_content=turn.get("reasoning_content", ""),
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id", ""),
    )


def message_from_proto(turn: common_pb2.ChatMessage, path: str, fail: Fail) -> Message:
    """A turn in its normal form.

    Raises:
        Exception: from `fail`, naming what is wrong.
    """
    if not turn.tool_calls and not (turn.name or turn.reasoning_content or turn.tool_call_id):
        if not turn.role:
            raise fail(f"{path}.role", "is required")
        return Message(role=turn.role, content=turn.content)
    value = {
        "role": turn.role,
        "content": turn.content if turn.HasField("content") or not turn.tool_calls else None,
        "name": turn.name,
        "reasoning_content": turn.reasoning_content,
        "tool_calls": [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ],
        "tool_call_id": turn.tool_call_id,
    }
    return read_message(value, path, fail)


def conversation_to_proto(conversation: Conversation) -> common_pb2.Conversation:
    """A conversation as a message."""
    kwargs = conversation.chat_template_kwargs
    return common_pb2.Conversation(
        messages=map(message_to_proto, conversation.messages),
        tools=map(_json, conversation.tools),
        chat_template_kwargs=_json(kwargs) if kwargs else "",
    )


def conversation_from_proto(
    message: common_pb2.Conversation, path: str, fail: Fail
) -> Conversation:
    """A conversation, its turns in their normal form.

    Raises:
        Exception: from `fail`, naming what is wrong.
    """
    turns = tuple(
        message_from_proto(turn, f"{path}.messages[{place}]", fail)
        for place, turn in enumerate(message.messages)
    )
    if not (message.tools or message.chat_template_kwargs):
        return Conversation(turns)
    tools = read_tools(list(message.tools), f"{path}.tools", fail)
    kwargs, name = message.chat_template_kwargs or None, f"{path}.chat_template_kwargs"
    return Conversation(turns, tools, read_template_kwargs(kwargs, name, fail))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False)
