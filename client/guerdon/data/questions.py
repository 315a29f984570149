"""What a row asks a reward model to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guerdon.data.conversations import (
    RowError,
    after,
    as_messages,
    check_text,
    conversations,
    parse_prompt,
    same_turns,
)
from guerdon.data.messages import (
    NO_INPUTS,
    Answer,
    Conversation,
    Message,
    TemplateInputs,
    answer_turn,
    as_answer,
    checked_answer,
    read_message,
    read_template_inputs,
    texts_in,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the answers to it, which are scored together."""

    prompt: str | list[Message]
    responses: list[Answer]
    inputs: TemplateInputs = NO_INPUTS

    @property
    def asked(self) -> str | list[Message] | Conversation:
        """The prompt with what its chat template is given beside it."""
        if not self.inputs:
            return self.prompt
        turns = self.prompt
        if isinstance(turns, str):
            turns = [Message(role="user", content=turns)]
        return Conversation.of(turns, self.inputs)


def parse_questions(row: Mapping[str, Any]) -> list[Question]:
    """The questions of a row; their responses, one after another, are the row's scores.

    A row is `prompt` with `responses`; or `chosen` and `rejected`, perhaps with a `prompt`
    (scores in that order, as one question when both follow the same turns and as two
    otherwise); or `messages`, whose last turn is the response. The first that fits is taken. A
    `prompt` beside whole conversations must be what they begin with. `tools` and
    `chat_template_kwargs` are for the chat template.

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
    inputs = read_template_inputs(row, RowError)
    return [replace(question, inputs=inputs) for question in questions]


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
    return Question(prompt, [_response(r, f"responses[{i}]") for i, r in enumerate(responses)])


def _response(value: Any, field: str) -> Answer:
    """A text, or an assistant's message."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise RowError(field, "must be text, or the assistant's message")
    return checked_answer(read_message(value, field, RowError), field, RowError)


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
    if same_turns(chosen[:-1], rejected[:-1]):
        return [Question(one.prompt, one.responses + other.responses)]
    return [one, other]


def _conversation(turns: Sequence[Message], field: str) -> Question:
    if turns[-1]["role"] != "assistant":
        raise RowError(field, "does not end with the assistant's turn")
    if len(turns) == 1:
        raise RowError(field, "has no turn before the assistant's")
    return Question(list(turns[:-1]), [as_answer(turns[-1])])


def _check_text(question: Question) -> None:
    turns = question.prompt
    if isinstance(turns, str):
        check_text("", turns)
        turns = []
    for turn in (*turns, *map(answer_turn, question.responses)):
        check_text("", turn["role"])
        for _, text in texts_in(turn):
            check_text("", text)
