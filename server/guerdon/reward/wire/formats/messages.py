"""Messages as chat APIs send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

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
    content: (
        Annotated[
            Annotated[Text, Tag("@text")]
            | Annotated[list[TextPart], Field(fail_fast=True), Tag("@parts")],
            Discriminator(lambda value: "@parts" if isinstance(value, list) else "@text"),
        ]
        | None
    ) = None
    name: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None


Messages = Annotated[list[ForeignMessage], Field(fail_fast=True)]
TextOrMessages = Annotated[
    Annotated[Text, Tag("@text")] | Annotated[Messages, Tag("@messages")],
    Discriminator(lambda value: "@messages" if isinstance(value, list) else "@text"),
]
"""A prompt as text or as a conversation."""
_UNSHOWN = (
    *("name", "reasoning", "reasoning_content"),
    *("tool_calls", "tool_call_id", "function_call"),
)
"""What a message may say beside its content, and is not shown to a reward model here."""


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
        InvalidRequest: it has none, or says more than that.
    """
    for name in _UNSHOWN:
        if getattr(message, name):
            reason = "would not be shown to the model: send the conversation as rendered text"
            raise InvalidRequest(f"{field}.{name}", reason)
    if message.content is None:
        raise InvalidRequest(f"{field}.content", "is required")
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)
