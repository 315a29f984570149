"""Prompts and completions of other systems, as text or chat messages, made into items.

Other systems hand over the same prompt once for each of its completions. Here they become one item,
so that the server computes the prompt once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from guerdon.client import (
    Conversation,
    FormattedText,
    InvalidArgument,
    Item,
    Prompt,
    Response,
    Score,
    ScoreResult,
)
from guerdon.client.errors import invalid
from guerdon.data import Message, as_answer, read_message, read_tools

_RESPONSE = re.compile(r"items\[(\d+)\]\.responses\[(\d+)\]")

Exchange = tuple[Prompt, Response]
"""A prompt and the response to it."""


def exchange(
    prompt: Any,
    completion: Any,
    *,
    tools: Any = None,
    ignored_keys: Collection[str] = (),
    where: tuple[str, str] = ("prompt", "completion"),
) -> Exchange:
    """The prompt and the response that a reward model is asked about.

    The response is the last turn of a completion that is messages; the turns before it belong to
    the prompt. Messages are read as chat APIs send them (see `guerdon.data.read_message`).

    Args:
        prompt: text, `FormattedText`, or messages.
        completion: text, or messages that end with the assistant's.
        tools: that the assistant may call, for the reward model's chat template.
        ignored_keys: keys of messages that are knowingly left out, such as `reasoning_content`.
        where: names of both, for errors.

    Raises:
        InvalidArgument: they are neither, or hold what a reward model can't be asked about: images,
            a last turn that is not the assistant's.
    """
    in_prompt, in_completion = where
    asked = prompt
    if not isinstance(prompt, str | FormattedText):
        asked = _turns(prompt, in_prompt, ignored_keys)
    between: list[Message] = []
    said: Response = completion
    if not isinstance(completion, str):
        *between, last = _turns(completion, in_completion, ignored_keys)
        if last["role"] != "assistant":
            raise invalid(
                in_completion, f"ends with the turn of {last['role']}, not the assistant's"
            )
        said = as_answer(last)
    shown = read_tools(tools, "tools", invalid)
    if not between and not shown:
        return asked, said
    if isinstance(asked, FormattedText):
        what = "tools" if shown else "several turns"
        raise invalid(in_completion, f"has {what}, which can't follow formatted text")
    if isinstance(asked, str):
        asked = [Message(role="user", content=asked)]
    turns = [*asked, *between]
    return (Conversation(turns, shown) if shown else turns), said


def grouped(exchanges: Sequence[Exchange]) -> tuple[list[Item], list[tuple[int, int]]]:
    """One item for each different prompt, and for each exchange the places of item and response."""
    places: dict[object, int] = {}
    prompts: list[Prompt] = []
    responses: list[list[Response]] = []
    found = []
    for prompt, response in exchanges:
        place = places.setdefault(_key(prompt), len(places))
        if place == len(prompts):
            prompts.append(prompt)
            responses.append([])
        found.append((place, len(responses[place])))
        responses[place].append(response)
    return [Item(p, r) for p, r in zip(prompts, responses, strict=True)], found


def note_exchange(error: InvalidArgument, places: Sequence[tuple[int, int]], name: str) -> None:
    """Add to an error of a grouped call which exchange it is about, where it names a response.

    Args:
        places: as `grouped` returned them.
        name: of the list of completions.
    """
    match = _RESPONSE.search(error.message)
    if match and (place := (int(match[1]), int(match[2]))) in places:
        error.add_note(f"{match[0]} is {name}[{places.index(place)}]")


def ungrouped(result: ScoreResult, places: Sequence[tuple[int, int]]) -> list[Score]:
    """Scores in the order of the exchanges that were grouped."""
    return [result.items[item].scores[response] for item, response in places]


def _key(prompt: Any) -> object:
    """A key that equal prompts share; the order of a tool's keys counts, which templates print."""
    if isinstance(prompt, str | FormattedText):
        return prompt
    if not isinstance(prompt, Conversation):
        return json.dumps(prompt)
    return json.dumps([prompt.messages, prompt.tools])


def _turns(value: Any, where: str, ignored_keys: Collection[str]) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise invalid(where, "must be text, or a list of messages that is not empty")
    return [_turn(entry, f"{where}[{i}]", ignored_keys) for i, entry in enumerate(value)]


def _turn(message: Any, where: str, ignored_keys: Collection[str]) -> Message:
    """A message in its normal form; one that says nothing at all ends its turn at once."""
    if isinstance(message, Mapping):
        message = {key: value for key, value in message.items() if key not in ignored_keys}
        says = message.get("content") is not None or message.get("tool_calls")
        if message.get("role") == "assistant" and not says:
            message["content"] = ""
    return read_message(message, where, invalid, strict=True)
