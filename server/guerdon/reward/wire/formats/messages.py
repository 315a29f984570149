"""Messages as chat APIs send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from guerdon.data import answer_of, read_message, read_template_inputs
from guerdon.reward.types import Conversation, Message, ScoreItem
from guerdon.reward.wire.formats.format import ForeignBody
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.schemas import Text

Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
TextOrMessages = Annotated[
    Annotated[Text, Tag("@text")] | Annotated[Messages, Tag("@messages")],
    Discriminator(lambda value: "@messages" if isinstance(value, list) else "@text"),
]
"""A prompt as text or as a conversation."""


class TemplateBody(ForeignBody):
    """What a request gives a chat template beside its messages."""

    tools: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def turns(messages: Sequence[dict[str, Any]], field: str) -> list[Message]:
    """The turns of a conversation.

    Raises:
        InvalidRequest: there is none, or one says what a model is not shown.
    """
    if not messages:
        raise InvalidRequest(field, "must have at least one message")
    return [
        read_message(message, f"{field}[{place}]", InvalidRequest)
        for place, message in enumerate(messages)
    ]


def last_answer(messages: Sequence[Message], field: str, given: TemplateBody) -> ScoreItem:
    """A conversation as its prompt, and the assistant's last turn as the response.

    Raises:
        InvalidRequest: it has no turn before that, or ends otherwise, or what the template is given
            is malformed.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InvalidRequest(field, "must end with the assistant's turn, which is scored")
    inputs = read_template_inputs(given.model_dump(), InvalidRequest)
    return ScoreItem(Conversation.of(messages[:-1], inputs), (answer_of(messages[-1]),))
