"""Messages as chat APIs send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Discriminator, Tag

from guerdon.data import answer_of, read_template_inputs
from guerdon.reward.types import Conversation, Message, ScoreItem
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import Messages, TemplateBody
from guerdon.serving.http.schemas import Text

TextOrMessages = Annotated[
    Annotated[Text, Tag("@text")] | Annotated[Messages, Tag("@messages")],
    Discriminator(lambda value: "@messages" if isinstance(value, list) else "@text"),
]
"""A prompt as text or as a conversation."""


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
