"""Chat templates rendered with a limit on memory and time.

A checkpoint's chat template is a Jinja program of a stranger: it runs in `template_sandbox`, with
an allowance that grows with the conversation.

What is rendered is, to the character, what `apply_chat_template(tokenize=False)` renders:
same options, extensions, filters and globals, less what no chat template needs (`lipsum`,
`str.expandtabs`, `urlize`, …), which is refused by name.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.data import NO_INPUTS, Message, Missing, TemplateInputs, missing_beside, missing_text
from guerdon.models.template_costs import (
    ALLOWANCE_PER_CHARACTER,
    BASE_ALLOWANCE,
    STEP,
    allowed,
    length_as_text,
)
from guerdon.models.template_sandbox import compiled, template_variables

_TURN = 16 * STEP
"""Length that a turn counts for beside its text: templates do some things for each."""


def render_chat(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    inputs: TemplateInputs = NO_INPUTS,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as text, by the tokenizer's chat template. Threads may share a tokenizer.

    Args:
        tokenizer: of `transformers`, with a template.
        turns: the conversation.
        inputs: what the template is given beside it.
        add_generation_prompt: end with what opens the assistant's turn.

    Raises:
        TemplateLimit: the template takes more memory or time than it can need.
        Exception: what Jinja or the template itself raises; a template is a program.
    """
    if not turns:
        raise ValueError("a conversation needs at least one message")
    values = {
        **inputs.chat_template_kwargs,
        **tokenizer.special_tokens_map,
        "tools": list(inputs.tools) or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    parts = (*turns, *inputs.tools, inputs.chat_template_kwargs)
    size = sum(_size(part) + _TURN for part in parts)
    with allowed(BASE_ALLOWANCE + ALLOWANCE_PER_CHARACTER * size):
        template = compiled(_source(tokenizer, inputs))
        first, *others = _forms(turns)
        try:
            text = template.render(values | {"messages": first})
        except Exception:  # a template is a program: it raises what it likes
            for form in others:
                with contextlib.suppress(Exception):
                    return template.render(values | {"messages": form})
            raise
        if "None" in text and others:
            with contextlib.suppress(Exception):
                filled = template.render(values | {"messages": others[0]})
                return filled if filled.count("None") < text.count("None") else text
        return text


def _size(part: Mapping[str, Any]) -> int:
    """Characters of a turn, a tool, or the variables."""
    if all(isinstance(value, str) for value in part.values()):
        return length_as_text(part)
    return len(json.dumps(part, default=str, ensure_ascii=False))


def _forms(turns: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
    """A conversation in the forms that templates take, the usual one first.

    Beside tool calls, content may be null, and arguments are an object. Some templates raise at
    null, or print `None`: they get an empty text. DeepSeek's want the arguments as JSON.
    """
    if not any(turn.get("tool_calls") for turn in turns):
        return [turns]
    filled = [{**turn, "content": turn.get("content") or ""} for turn in turns]
    return [turns, filled, [*map(_with_json, turns)], [*map(_with_json, filled)]]


def _with_json(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn with the arguments of its tool calls as JSON."""
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**turn, "tool_calls": calls}


def left_out(
    tokenizer: Any,
    turns: Sequence[Message],
    inputs: TemplateInputs,
    rendered: str,
    *,
    add_generation_prompt: bool = False,
) -> list[Missing]:
    """What a chat template leaves out of a conversation, variables that it does not read included.

    Args:
        tokenizer: with the template.
        turns: the conversation.
        inputs: what the template was given beside it.
        rendered: what it made of both; see `render_chat`.
        add_generation_prompt: as for `render_chat`.

    Raises:
        Exception: what the template raises; a template is a program.
    """
    render = functools.partial(render_chat, tokenizer, add_generation_prompt=add_generation_prompt)
    missing = [*missing_text(rendered, turns), *missing_beside(render, turns, inputs)]
    if inputs.chat_template_kwargs:
        read = template_variables(_source(tokenizer, inputs))
        missing += [
            Missing(-1, "", name, None, f"chat_template_kwargs.{name[:64]}")
            for name in inputs.chat_template_kwargs
            if name not in read
        ]
    return missing


def _source(tokenizer: Any, inputs: TemplateInputs) -> str:
    """The tokenizer's template; the one for tools where it has several and there are tools."""
    tools = {"tools": list(inputs.tools)} if inputs.tools else {}
    return str(tokenizer.get_chat_template(**tools))
