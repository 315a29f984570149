"""What a row asks a reward model to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.data.conversations import (
    Message,
    RowError,
    after,
    as_messages,
    check_text,
    conversations,
    parse_prompt,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the answers to it, which are scored together."""

    prompt: str | list[Message]
    responses: list[str]


def parse_questions(row: Mapping[str, Any]) -> list[Question]:
    """The questions of a row; their responses, one after another, are the row's scores.

    A row is `prompt` with `responses`; or `chosen` and `rejected`, perhaps with a `prompt`
    (scores in that order, as one question when both follow the same turns and as two
    otherwise); or `messages`, whose last turn is the response. The first that fits is taken. A
    `prompt` beside whole conversations must be what they begin with.

    Raises:
        RowError: the row has none of these forms, or a field is malformed.
    """
    if "responses" in row:
        questions = [_with_responses(row)]
    elif "chosen" in row or "rejected" in row:
        questions = _pair(row)
    elif "messages" in row:
        questions = [_whole(row)]
    else:
        raise RowError("", 'has no "responses", no "chosen" and "rejected", and no "messages"')
    for question in questions:
        _check_text(question)
    return questions


def _with_responses(row: Mapping[str, Any]) -> Question:
    prompt = row.get("prompt")
    if prompt is None:
        raise RowError("prompt", "is missing")
    if not isinstance(prompt, str):
        prompt = as_messages(prompt, "prompt")
    elif not prompt:
        raise RowError("prompt", "is empty")
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise RowError("responses", "must be a non-empty list of texts")
    for i, response in enumerate(responses):
        if not isinstance(response, str):
            raise RowError(f"responses[{i}]", "must be text")
    return Question(prompt, responses)


def _whole(row: Mapping[str, Any]) -> Question:
    turns = as_messages(row["messages"], "messages")
    if row.get("prompt"):
        prompt, turns = after(parse_prompt(row["prompt"]), turns, "messages")
        turns = prompt + turns
    return _conversation(turns, "messages")


def _pair(row: Mapping[str, Any]) -> list[Question]:
    prompt, chosen, rejected = conversations(row)
    one = _conversation((prompt or []) + chosen, "chosen")
    other = _conversation((prompt or []) + rejected, "rejected")
    if one.prompt == other.prompt:
        return [Question(one.prompt, one.responses + other.responses)]
    return [one, other]


def _conversation(turns: Sequence[Message], field: str) -> Question:
    if turns[-1]["role"] != "assistant":
        raise RowError(field, "does not end with the assistant's turn")
    if len(turns) == 1:
        raise RowError(field, "has no turn before the assistant's")
    return Question(list(turns[:-1]), [turns[-1]["content"]])


def _check_text(question: Question) -> None:
    turns = question.prompt
    texts = [turns] if isinstance(turns, str) else [v for t in turns for v in t.values()]
    for text in (*map(str, texts), *question.responses):
        check_text("", text)
