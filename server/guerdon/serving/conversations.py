"""Conversations rendered by a model's chat template, for every service; errors name the field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from guerdon.data import (
    Conversation,
    Message,
    TemplateInputs,
    missing_tools,
    unknown_role,
)
from guerdon.models.chat_template import render_chat, unread_variable
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
        InvalidRequest: the template refuses it, or does not read a variable that it is given.
    """
    try:
        unread = unread_variable(tokenizer, inputs)
        text = render_chat(tokenizer, turns, inputs, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program: it raises what it likes
        raise InvalidRequest(field, f"is refused by the chat template: {error}") from error
    if unread is not None:
        raise InvalidRequest(
            f"{field}.chat_template_kwargs.{unread}",
            "is no variable that the model's chat template reads",
        )
    return text


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


def check_tools(field: str, conversation: Conversation, rendered: str) -> None:
    """Refuse tools that the template did not render, so that the model does not see them."""
    for place in missing_tools(rendered, conversation.tools):
        raise InvalidRequest(
            f"{field}.tools[{place}]", "is a tool that the model's chat template leaves out"
        )
