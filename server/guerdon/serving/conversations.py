"""Conversations rendered by a model's chat template, for every service; errors name the field."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from guerdon.data import Conversation, Message, Missing, TemplateInputs, unknown_role
from guerdon.models.chat_template import left_out, render_chat
from guerdon.serving.errors import InvalidRequest


def render(
    tokenizer: Any,
    field: str,
    turns: Sequence[Message],
    inputs: TemplateInputs,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; see `render_chat`.

    Args:
        tokenizer: of `transformers`, with a template.
        field: of the prompt.
        turns: the conversation.
        inputs: what the template is given beside it.
        add_generation_prompt: end with what opens the assistant's turn.

    Raises:
        InvalidRequest: the template refuses it.
    """
    with _refusals(field):
        return render_chat(tokenizer, turns, inputs, add_generation_prompt=add_generation_prompt)


def missing_parts(
    tokenizer: Any,
    field: str,
    turns: Sequence[Message],
    inputs: TemplateInputs,
    rendered: str,
    *,
    add_generation_prompt: bool = False,
) -> list[Missing]:
    """What the template left out of a conversation that `render` made `rendered` of.

    Raises:
        InvalidRequest: the template refuses it with marks in the place of its parts.
    """
    with _refusals(field):
        return left_out(
            tokenizer, turns, inputs, rendered, add_generation_prompt=add_generation_prompt
        )


@contextlib.contextmanager
def _refusals(field: str) -> Iterator[None]:
    """What a template raises, as an error of the field; a template is a program."""
    try:
        yield
    except Exception as error:
        raise InvalidRequest(field, f"is refused by the chat template: {error}") from error


def check_roles(field: str, conversation: Conversation, known: Collection[str]) -> None:
    """Refuse roles that no model knows: many templates print any role.

    Args:
        field: of the prompt.
        conversation: of the prompt.
        known: roles that the model's template names, besides the usual ones.
    """
    for place, turn in enumerate(conversation.messages):
        wrong = unknown_role(turn["role"], known)
        if wrong:
            raise InvalidRequest(f"{field}.messages[{place}].role", wrong)
