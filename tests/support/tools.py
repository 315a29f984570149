"""A conversation that calls a tool, as chat APIs send it, and published templates for it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, today's or that of later days.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "days": {"type": "integer", "enum": [0, 1, 2]},
            },
            "required": ["city"],
        },
    },
}
ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it warm in Rome?"},
]
ARGUMENTS = {"city": "Rome", "days": 2}


def call(arguments: Any = ARGUMENTS) -> dict[str, Any]:
    """A call of the tool."""
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "call00001", "type": "function", "function": function}


CALL: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT: dict[str, Any] = {
    "role": "tool",
    "tool_call_id": "call00001",
    "name": "get_weather",
    "content": "Sunny, 30",
}
OTHER_CALL: dict[str, Any] = {
    **CALL,
    "tool_calls": [
        {
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Reims", "days": 2}},
        }
    ],
}
TALK = [*ASKED, CALL, RESULT]
ANSWER = "Yes, 30 degrees."
TEMPLATES = ("qwen2_5", "qwen3", "llama3_1", "nemotron_3_nano")
"""Templates that render tools, calls of tools and what they answer."""


def published(name: str) -> str:
    """The chat template of a published model, from those that TRL is shipped with."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def as_sent(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn as OpenAI's API has it: content in parts, arguments as JSON, null where nothing is."""
    content = turn["content"]
    sent = {"name": None, "tool_calls": None, "refusal": None, **turn}
    if content is not None:
        middle = len(content) // 2
        sent["content"] = [
            {"type": "text", "text": part} for part in (content[:middle], content[middle:])
        ]
    if sent["tool_calls"] is not None:
        sent["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(ARGUMENTS)}}
            if call["function"]["arguments"] == ARGUMENTS
            else call
            for call in turn["tool_calls"]
        ]
    return sent
