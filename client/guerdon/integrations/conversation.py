"""Prompts and completions of other systems, as text or chat messages, made into items.

Other systems hand over the same prompt once for each of its completions. Here they become one item,
so that the server computes the prompt once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from guerdon.client import FormattedText, InvalidArgument, Item, Prompt, Score, ScoreResult
from guerdon.client.errors import invalid

_RESPONSE = re.compile(r"items\[(\d+)\]\.responses\[(\d+)\]")

Turn = Mapping[str, str]
Exchange = tuple[Prompt, str]
"""A prompt and the response to it."""


def exchange(
    prompt: Any,
    completion: Any,
    *,
    ignored_keys: Collection[str] = (),
    where: tuple[str, str] = ("prompt", "completion"),
) -> Exchange:
    """The prompt and the response that a reward model is asked about.

    The response is the last turn of a completion that is messages; the turns before it belong to
    the prompt. Content may be a list of text parts, which are joined with nothing between. Keys
    without a value are passed over.

    Args:
        prompt: text, `FormattedText`, or messages.
        completion: text, or messages that end with the assistant's.
        ignored_keys: keys of messages that are knowingly left out, such as `reasoning_content`.
        where: names of both, for errors.

    Raises:
        InvalidArgument: they are neither, or hold what a reward model can't be asked about: images,
            tool calls, a last turn that is not the assistant's.
    """
    in_prompt, in_completion = where
    asked = prompt
    if not isinstance(prompt, str | FormattedText):
        asked = _turns(prompt, in_prompt, ignored_keys)
    if isinstance(completion, str):
        return asked, completion
    *between, last = _turns(completion, in_completion, ignored_keys)
    if last["role"] != "assistant":
        raise invalid(in_completion, f"ends with the turn of {last['role']}, not the assistant's")
    if not between:
        return asked, last["content"]
    if isinstance(asked, FormattedText):
        raise invalid(in_completion, "has several turns, which can't follow formatted text")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return [*asked, *between], last["content"]


def grouped(exchanges: Sequence[Exchange]) -> tuple[list[Item], list[tuple[int, int]]]:
    """One item for each different prompt, and for each exchange the places of item and response."""
    places: dict[object, int] = {}
    prompts: list[Prompt] = []
    responses: list[list[str]] = []
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
    if isinstance(prompt, str | FormattedText):
        return prompt
    return tuple((turn["role"], turn["content"]) for turn in prompt)


def _turns(value: Any, where: str, ignored_keys: Collection[str]) -> list[Turn]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise invalid(where, "must be text, or a list of messages that is not empty")
    return [_turn(entry, f"{where}[{i}]", ignored_keys) for i, entry in enumerate(value)]


def _turn(message: Any, where: str, ignored_keys: Collection[str]) -> Turn:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise invalid(where, "must be a mapping with role and content")
    for key in message.keys() - {"role", "content", *ignored_keys}:
        if message[key] is not None and message[key] != []:
            # Left out silently, a tool call or a name would change what is scored.
            raise invalid(f"{where}.{key}", "is not part of what a reward model is asked about")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        content = ""  # nothing but the token that ends the turn
    return {"role": message["role"], "content": _text(content, f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise invalid(where, "must be text, or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise invalid(f"{where}[{place}]", "must be a part of type text")
        texts.append(text)
    return "".join(texts)
