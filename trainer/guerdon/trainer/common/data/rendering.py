"""Conversations as texts, by a chat template, which must show all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from guerdon.data import (
    NO_INPUTS,
    REASONING,
    Conversation,
    Dropped,
    Message,
    Missing,
    RowError,
    TemplateInputs,
)
from guerdon.models.chat_template import left_out, render_chat
from guerdon.trainer.common.data.rows import Rows
from guerdon.trainer.common.errors import DataError

_NOTED = {"reasoning_dropped": REASONING, "names_dropped": frozenset({Dropped.NAME})}
"""What a template may leave out, by the name under which its lines are listed (see `ODD` of
common.report)."""


def render(
    tokenizer: Any, column: Sequence[Conversation], data: Rows[Any]
) -> tuple[list[str], list[frozenset[Dropped]]]:
    """Conversations as texts, by the chat template, and what it leaves out of each.

    A reward model's template may strip the reasoning of all turns, as DeepSeek-R1's does: answers
    are then judged without it, in training as in serving.

    Args:
        tokenizer: of `transformers`, with a template.
        column: one for each of the data's lines.
        data: where they came from, for the message.

    Raises:
        DataError: the template refuses one, or leaves out other text of it.
    """
    texts, left_out = [], []
    for line, one in zip(data.lines, column, strict=True):
        try:
            text, parts = rendered(
                tokenizer, one.messages, one.inputs, may_drop=REASONING | {Dropped.NAME}
            )
        except RowError as error:
            raise DataError(f"{data.source}, {error.at(line)}") from error
        texts.append(text)
        left_out.append(parts)
    return texts, left_out


def rendered(
    tokenizer: Any,
    turns: Sequence[Message],
    inputs: TemplateInputs = NO_INPUTS,
    *,
    may_drop: Collection[Dropped] = (Dropped.EARLIER_REASONING, Dropped.NAME),
    add_generation_prompt: bool = False,
) -> tuple[str, frozenset[Dropped]]:
    """A conversation as text, by the chat template, and what the template leaves out of it.

    Args:
        tokenizer: of `transformers`, with a template.
        turns: the conversation.
        inputs: what the template is given beside it.
        may_drop: what the template may leave out.
        add_generation_prompt: end with what opens the assistant's turn.

    Raises:
        RowError: the template refuses it, leaves out other text or a tool, or does not read a
            variable.
    """
    try:
        text = render_chat(tokenizer, turns, inputs, add_generation_prompt=add_generation_prompt)
        missing = left_out(
            tokenizer, turns, inputs, text, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # jinja2's errors, and what a template raises itself
        raise RowError("", f"the chat template refuses it: {error}") from error
    for one in missing:
        if one.place < 0:
            raise RowError(one.field, one.reason)
        if one.part not in may_drop:
            raise RowError("", _reason(one))
    return text, frozenset(one.part for one in missing if one.part)


def lines_left_out(
    lines: Sequence[int], *columns: Sequence[frozenset[Dropped]]
) -> dict[str, list[int]]:
    """The lines of rows of which a template leaves something out, by what that is.

    Args:
        lines: where each row stood.
        columns: what is left out of each row's conversations.
    """
    rows = [frozenset[Dropped]().union(*parts) for parts in zip(*columns, strict=True)]
    return {
        name: [line for line, parts in zip(lines, rows, strict=True) if parts & kinds]
        for name, kinds in _NOTED.items()
    }


def _reason(missing: Missing) -> str:
    """Why a conversation is refused of which a part is missing."""
    turn = f"turn {missing.place + 1} ({missing.role})"
    if missing.field.startswith("tool_calls"):
        return (
            f"{turn}, {missing.field}, {missing.reason}: a template that renders tool calls is "
            "needed (--chat-template)"
        )
    return (
        f"{turn} {missing.reason}: a template that renders messages whose content is a text is "
        "needed (--chat-template)"
    )
