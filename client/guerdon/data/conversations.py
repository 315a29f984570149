"""Conversations and preference pairs, from chat messages or HH-RLHF transcripts.

A transcript alternates `\\n\\nHuman:` and `\\n\\nAssistant:` (Bai et al. 2022,
arXiv:2204.05862, the published form of the data).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.data.messages import (
    NO_INPUTS,
    Answer,
    Message,
    TemplateInputs,
    as_answer,
    message_text,
    read_message,
    read_template_inputs,
    texts_in,
)
from guerdon.data.rendering import unknown_role

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ANSWERS = ("messages", "response", "completion", "chosen")
"""Keys of a row that may hold an answer to learn from."""
_ROLE = {"Human": "user", "Assistant": "assistant"}


class RowError(ValueError):
    """A row of data is wrong.

    Args:
        field: the field's path, such as `chosen[2].content`; empty for the row as a whole.
        reason: what is wrong, without the field's name.
        line: the line of the file, from 1, where it is known.
    """

    def __init__(self, field: str, reason: str, *, line: int | None = None) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason
        self.line = line

    def at(self, line: int) -> RowError:
        """This error with the line that it was found in."""
        return RowError(self.field, self.reason, line=line)

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.field}: {self.reason}" if self.field else where + self.reason


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt; the first is preferred. All three are whole turns."""

    prompt: list[Message]
    chosen: list[Message]
    """The turns that follow the prompt, the last one the assistant's."""
    rejected: list[Message]
    inputs: TemplateInputs = NO_INPUTS


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer to learn from."""

    prompt: list[Message]
    answer: Answer
    inputs: TemplateInputs = NO_INPUTS


def is_transcript(text: str) -> bool:
    """Whether a text begins as an HH-RLHF transcript does."""
    return bool(re.match(r"\s*Human:", text))


def parse_transcript(text: str, field: str = "transcript") -> list[Message]:
    """The turns of an HH-RLHF transcript.

    Raises:
        RowError: it has no turns, or text before the first one.
    """
    body = "\n\n" + text.lstrip()
    marks = list(_TURN.finditer(body))
    if not marks or body[: marks[0].start()].strip():
        raise RowError(field, "is not a transcript: it does not begin with 'Human:'")
    ends = [mark.start() for mark in marks[1:]] + [len(body)]
    return [
        Message(role=_ROLE[mark[1]], content=body[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]


def as_messages(value: Any, field: str) -> list[Message]:
    """Chat messages from a list of them (see `read_message`) or from a transcript.

    Raises:
        RowError: neither of these, naming the part that is wrong.
    """
    if isinstance(value, str):
        return parse_transcript(value, field)
    if not isinstance(value, list) or not value:
        raise RowError(field, "must be a non-empty list of messages, or a transcript")
    return [read_message(entry, f"{field}[{i}]", RowError) for i, entry in enumerate(value)]


def parse_pair(row: Mapping[str, Any]) -> Pair:
    """The pair of a row with `chosen` and `rejected`, and perhaps `prompt`.

    With a `prompt` (text for one user turn, a transcript, or messages) the answers may
    be plain text, or the assistant's turns, or whole conversations that begin with it (see
    `after`). Without one, both are whole conversations, and what they share is the prompt. `tools`
    and `chat_template_kwargs` beside them are for the chat template.

    Raises:
        RowError: a field is missing or malformed, an answer does not end with the
            assistant's turn, or the two answers are the same.
    """
    prompt, chosen, rejected = conversations(row)
    if prompt is None:
        prompt, chosen, rejected = _split(chosen, rejected)
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise RowError(field, "does not end with the assistant's turn")
        check_turns(field, turns)
        _check_follows(field, prompt, turns)
    check_turns("prompt", prompt)
    if same_turns(chosen, rejected):
        raise RowError("rejected", "is the same as chosen")
    return Pair(prompt, chosen, rejected, read_template_inputs(row, RowError))


def parse_demonstration(row: Mapping[str, Any]) -> Demonstration:
    """The last answer of a row with `messages`, with `prompt` and `response`, or with `chosen`.

    `messages` is a whole conversation, which a `prompt` beside it must begin. `response` (or
    `completion`) is plain text, or the assistant's turn. Of a preference pair the chosen answer
    is learned.

    Raises:
        RowError: a field is missing or malformed, or the answer is missing or empty.
    """
    field = next((key for key in _ANSWERS if key in row), "")
    if not field:
        raise RowError("", f"has none of {', '.join(_ANSWERS)}")
    prompt: list[Message] = []
    given = row.get("prompt")
    if given is not None and not (field == "messages" and given == ""):
        prompt, turns = after(parse_prompt(given), _answer(row[field], field), field)
    elif field in ("response", "completion"):
        raise RowError("prompt", "is missing")
    else:
        turns = as_messages(row[field], field)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError(field, "does not end with the assistant's turn")
    if not message_text(turns[-1]).strip() and "tool_calls" not in turns[-1]:
        raise RowError(field, "ends with an empty answer")
    if not prompt and len(turns) == 1:
        raise RowError(field, "has no turn before the answer")
    check_turns("prompt", prompt)
    check_turns(field, turns)
    _check_follows(field, prompt, turns)
    inputs = read_template_inputs(row, RowError)
    return Demonstration(prompt + turns[:-1], as_answer(turns[-1]), inputs)


def check_turns(field: str, turns: Sequence[Message]) -> None:
    """Refuse turns that no model was trained on.

    Raises:
        RowError: a role is unknown, or a text is none.
    """
    for turn in turns:
        wrong = unknown_role(turn["role"])
        if wrong:
            raise RowError(field, f"has a turn whose role {wrong}")
        for _, text in texts_in(turn):
            check_text(field, text)


def check_text(field: str, text: str) -> None:
    """JSON can hold half of a surrogate pair; UTF-8, and so the wire and tokenizers, can't.

    Raises:
        RowError: the text holds one.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(field, "holds an unpaired surrogate, which is no text") from None


def _check_follows(field: str, prompt: Sequence[Message], turns: Sequence[Message]) -> None:
    """The assistant does not answer itself."""
    if prompt and prompt[-1]["role"] == "assistant" == turns[0]["role"]:
        raise RowError("prompt", f"ends with the assistant's turn, and {field} begins with one")


def conversations(
    row: Mapping[str, Any],
) -> tuple[list[Message] | None, list[Message], list[Message]]:
    """The prompt, if the row has one, and what follows it in `chosen` and in `rejected`.

    Without a prompt, both are whole conversations.

    Raises:
        RowError: a field is missing or malformed, or a conversation does not begin with the
            prompt.
    """
    for key in ("chosen", "rejected"):
        if key not in row:
            raise RowError(key, "is missing")
    if row.get("prompt") is None:
        return None, as_messages(row["chosen"], "chosen"), as_messages(row["rejected"], "rejected")
    given = parse_prompt(row["prompt"])
    one, other = (_answer(row[key], key) for key in ("chosen", "rejected"))
    prompt, chosen = after(given, one, "chosen")
    same, rejected = after(given, other, "rejected")
    if prompt != same and len(chosen) < len(one) and len(rejected) < len(other):
        raise RowError("rejected", "begins with another system turn than chosen")
    return max(prompt, same, key=len), chosen, rejected


def parse_prompt(value: Any) -> list[Message]:
    """The turns of a prompt: text for one user turn, a transcript, or messages.

    Raises:
        RowError: it is none of these, or empty.
    """
    if isinstance(value, str) and not is_transcript(value):
        if not value.strip():
            raise RowError("prompt", "is empty")
        return [Message(role="user", content=value)]
    turns = as_messages(value, "prompt")
    if turns[-1] == Message(role="assistant", content=""):  # a transcript cut after "Assistant:"
        turns = turns[:-1]
    return turns


def _answer(value: Any, field: str) -> list[Message]:
    if isinstance(value, str) and not is_transcript(value):
        return [Message(role="assistant", content=value)]
    return as_messages(value, field)


def after(
    prompt: list[Message], turns: list[Message], field: str
) -> tuple[list[Message], list[Message]]:
    """The prompt of a row, and those of the turns beside it that follow it.

    Turns that begin with the assistant's follow the prompt as they are. Others are a whole
    conversation and must begin with the prompt, but that white space at the ends of texts may
    differ (the prompt's is taken), and a system turn may stand in one of the two alone (it becomes
    part of the prompt). After a prompt that ends with the assistant's turn, a user's may follow.

    Raises:
        RowError: the conversation begins otherwise, so that the prompt would be said twice.
    """
    if same_turns(turns[: len(prompt)], prompt):
        return prompt, turns[len(prompt) :]
    if turns[0]["role"] in ("assistant", "tool", "function"):
        return prompt, turns
    (rules, asked), (own_rules, rest) = _system_apart(prompt), _system_apart(turns)
    if same_turns(_bare(rest[: len(asked)]), _bare(asked)):
        if rules and own_rules and _bare(rules) != _bare(own_rules):
            raise RowError(field, "begins with another system turn than the row's prompt")
        return (rules or own_rules) + asked, rest[len(asked) :]
    if prompt[-1]["role"] == "assistant" and not own_rules and _bare(rest[:1]) != _bare(asked[:1]):
        return prompt, turns
    raise RowError(
        field,
        f"is a conversation that does not begin with the row's prompt: {_begins(rest)} in place "
        f"of {_begins(asked)}. Leave the prompt out where conversations are whole",
    )


def same_turns(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether turns say the same; to Python 1, 1.0 and True are equal, and templates print them."""
    return one == other and json.dumps(one) == json.dumps(other)


def _system_apart(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system turns at the start, and the others."""
    rules = ("system", "developer")
    count = next((i for i, t in enumerate(turns) if t["role"] not in rules), len(turns))
    return turns[:count], turns[count:]


def _bare(turns: list[Message]) -> list[Message]:
    """Turns without the white space at the ends of their texts."""
    return [{**turn, "content": message_text(turn).strip()} for turn in turns]


def _begins(turns: list[Message]) -> str:
    return f"{turns[0]['role']}: {message_text(turns[0]).strip()[:40]!r}" if turns else "nothing"


def _split(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """What both conversations begin with, short of either's last turn, and the rest of each."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if not same_turns([one], [other]):
            break
        shared += 1
    if shared == 0:
        raise RowError("rejected", "has no prompt in common with chosen")
    return chosen[:shared], chosen[shared:], rejected[shared:]
