"""Messages as chat APIs send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from guerdon.reward.types import Message
from guerdon.reward.wire.formats.format import ForeignBody
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.schemas import Text


class TextPart(ForeignBody):
    """A part of a message that is text."""

    type: Literal["text", "input_text", "output_text"]
    text: Text


class ForeignMessage(ForeignBody):
    """One turn, its content as text or in parts."""

    role: Text = Field(min_length=1)
    content: Text | list[TextPart] | None = None
    tool_calls: list[Any] | None = None


def conversation(messages: Sequence[ForeignMessage], field: str) -> tuple[Message, ...]:
    """The turns of a conversation.

    Raises:
        InvalidRequest: there is none, or one has no text.
    """
    if not messages:
        raise InvalidRequest(field, "must have at least one message")
    return tuple(
        Message(message.role, content(message, f"{field}[{place}]"))
        for place, message in enumerate(messages)
    )


def content(message: ForeignMessage, field: str) -> str:
    """The text of a message, its parts joined.

    Raises:
        InvalidRequest: it has none, or calls tools.
    """
    if message.tool_calls:
        raise InvalidRequest(
            f"{field}.tool_calls", "can't be scored: send the conversation as text"
        )
    if message.content is None:
        raise InvalidRequest(f"{field}.content", "is required")
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)
