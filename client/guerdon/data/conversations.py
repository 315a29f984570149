"""Conversations and preference pairs, from chat messages or HH-RLHF transcripts.

A transcript alternates `\\n\\nHuman:` and `\\n\\nAssistant:` (Bai et al. 2022,
arXiv:2204.05862, the published form of the data).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from guerdon.data.rendering import unknown_role

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_UNKEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")
"""Parts of a message that templates render: left out in silence, they would change a score."""
_ANSWERS = ("messages", "response", "completion", "chosen")
"""Where a row may hold an answer to learn from."""
_ROLE = {"Human": "user", "Assistant": "assistant"}


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


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
        """The same error, with the line it was found in."""
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


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer to learn from."""

    prompt: list[Message]
    answer: str


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
    """Chat messages from a list of `{"role", "content"}` or from a transcript.

    Raises:
        RowError: neither of these, naming the part that is wrong.
    """
    if isinstance(value, str):
        return parse_transcript(value, field)
    if not isinstance(value, list) or not value:
        raise RowError(field, "must be a non-empty list of messages, or a transcript")
    return [_message(entry, f"{field}[{i}]") for i, entry in enumerate(value)]


def _message(entry: Any, field: str) -> Message:
    if not isinstance(entry, Mapping):
        raise RowError(field, 'must be an object with "role" and "content"')
    for key in ("role", "content"):
        if not isinstance(entry.get(key), str):
            raise RowError(f"{field}.{key}", "must be text")
    if not entry["role"]:
        raise RowError(f"{field}.role", "is empty")
    for key in _UNKEPT:
        if entry.get(key):
            raise RowError(f"{field}.{key}", "is not supported: only role and content are read")
    return Message(role=entry["role"], content=entry["content"])


def parse_pair(row: Mapping[str, Any]) -> Pair:
    """The pair of a row with `chosen` and `rejected`, and perhaps `prompt`.

    With a `prompt` (text for one user turn, a transcript, or messages) the answers may
    be plain text, or the assistant's turns, or whole conversations that begin with it.
    Without one, both are whole conversations, and what they share is the prompt.

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
    if chosen == rejected:
        raise RowError("rejected", "is the same as chosen")
    return Pair(prompt, chosen, rejected)


def parse_demonstration(row: Mapping[str, Any]) -> Demonstration:
    """The last answer of a row with `messages`, with `prompt` and `response`, or with `chosen`.

    `messages` is a whole conversation. `response` (or `completion`) is plain text, or the
    assistant's turn. Of a preference pair the chosen answer is learned.

    Raises:
        RowError: a field is missing or malformed, or the answer is missing or empty.
    """
    field = next((key for key in _ANSWERS if key in row), "")
    if not field:
        raise RowError("", f"has none of {', '.join(_ANSWERS)}")
    prompt: list[Message] = []
    if field != "messages" and row.get("prompt") is not None:
        prompt = parse_prompt(row["prompt"])
        turns = _answer(row[field], field, prompt)
    elif field in ("response", "completion"):
        raise RowError("prompt", "is missing")
    else:
        turns = as_messages(row[field], field)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError(field, "does not end with the assistant's turn")
    if not turns[-1]["content"].strip():
        raise RowError(field, "ends with an empty answer")
    if not prompt and len(turns) == 1:
        raise RowError(field, "has no turn before the answer")
    check_turns("prompt", prompt)
    check_turns(field, turns)
    _check_follows(field, prompt, turns)
    return Demonstration(prompt + turns[:-1], turns[-1]["content"])


def check_turns(field: str, turns: Sequence[Message]) -> None:
    """Refuse turns that no model was trained on.

    Raises:
        RowError: a role is unknown, or a text is none.
    """
    for turn in turns:
        wrong = unknown_role(turn["role"])
        if wrong:
            raise RowError(field, f"has a turn whose role {wrong}")
        check_text(field, turn["content"])


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
        RowError: a field is missing or malformed.
    """
    for key in ("chosen", "rejected"):
        if key not in row:
            raise RowError(key, "is missing")
    if row.get("prompt") is None:
        return None, as_messages(row["chosen"], "chosen"), as_messages(row["rejected"], "rejected")
    prompt = parse_prompt(row["prompt"])
    return (
        prompt,
        _answer(row["chosen"], "chosen", prompt),
        _answer(row["rejected"], "rejected", prompt),
    )


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


def _answer(value: Any, field: str, prompt: list[Message]) -> list[Message]:
    if isinstance(value, str) and not is_transcript(value):
        return [Message(role="assistant", content=value)]
    turns = as_messages(value, field)
    return turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns


def _split(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """What both conversations begin with, short of either's last turn, and the rest of each."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        raise RowError("rejected", "has no prompt in common with chosen")
    return chosen[:shared], chosen[shared:], rejected[shared:]
