"""A conversation with tools, and chat templates of published models that render one.

The templates are those that TRL ships for its training, as their models have them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": "Zürich", "days": 2}


def call(arguments: Any = ARGUMENTS) -> dict[str, Any]:
    """A call of the tool; its arguments as an object, as templates take them."""
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "call12345", "type": "function", "function": function}


ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is the weather in Zürich?"},
]
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call()]}
TOLD: dict[str, Any] = {
    "role": "tool",
    "content": 'It says "rain".',
    "name": "get_weather",
    "tool_call_id": "call12345",
}
ANSWER = "It will rain."
TALK = [*ASKED, CALLED, TOLD]
"""What is asked, in the normal form."""


def as_sent() -> list[dict[str, Any]]:
    """The same as chat APIs send it: text in parts, arguments as JSON, keys without a value."""
    parts = [
        {"type": "text", "text": "How is the weather "},
        {"type": "text", "text": "in Zürich?"},
    ]
    calls = [call(json.dumps(ARGUMENTS))]
    return [
        ASKED[0],
        {"role": "user", "content": parts},
        {**CALLED, "tool_calls": calls, "refusal": None, "function_call": None},
        TOLD,
    ]


def template(name: str) -> str:
    """A published model's chat template."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
