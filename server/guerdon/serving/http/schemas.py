"""The JSON twins of the messages that services share, for the HTTP side.

A prompt is text, a list of messages, `{"token_ids": […]}` or `{"formatted_text": …}`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from guerdon.serving.prompts import MAX_TOKEN_ID, FormattedText, Message, Prompt
from guerdon.serving.waiting import MAX_TIMEOUT


class Body(BaseModel):
    """A part of a request: no unknown fields, no values of another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(value: str) -> str:
    if not is_unicode(value):
        raise ValueError("is not valid Unicode")
    return value


Text = Annotated[str, AfterValidator(_check_text)]


class MessageBody(Body):
    """One turn of a conversation."""

    role: Text = Field(min_length=1, description='Usually "system", "user" or "assistant".')
    content: Text


class TokenIdsBody(Body):
    """Tokens by their number in the model's own vocabulary."""

    token_ids: list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]] = Field(
        min_length=1, fail_fast=True
    )


class FormattedTextBody(Body):
    """Text that is already rendered: nothing is added."""

    formatted_text: Text


def _form(value: Any) -> str:
    """Which form a prompt or response has; the tag's @ keeps it out of error paths."""
    if isinstance(value, list):
        return "@messages"
    if isinstance(value, FormattedTextBody):
        return "@formatted"
    if isinstance(value, TokenIdsBody):
        return "@tokens"
    if isinstance(value, dict):
        return "@formatted" if "formatted_text" in value else "@tokens"
    return "@text"


PromptBody = Annotated[
    Annotated[Text, Tag("@text")]
    | Annotated[list[MessageBody], Field(min_length=1, fail_fast=True), Tag("@messages")]
    | Annotated[TokenIdsBody, Tag("@tokens")]
    | Annotated[FormattedTextBody, Tag("@formatted")],
    Discriminator(_form),
]

TIMEOUT = Field(
    default=None,
    gt=0,
    le=MAX_TIMEOUT,
    allow_inf_nan=False,
    description="Seconds allowed for the call.",
)
MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1
"""The largest numbers of the protocol, whose JSON twins have the same bounds."""


def as_prompt(body: Any) -> Prompt:
    """A `PromptBody` in the domain's terms."""
    if isinstance(body, TokenIdsBody):
        return np.asarray(body.token_ids, dtype=np.int32)
    if isinstance(body, FormattedTextBody):
        return FormattedText(body.formatted_text)
    if isinstance(body, str):
        return body
    return tuple(Message(turn.role, turn.content) for turn in body)


class ErrorDetail(BaseModel):
    """Why a call failed."""

    code: str = Field(description="The gRPC status code's name.")
    message: str
    field: str | None = Field(default=None, description="The field at fault.")
    retry_after: float | None = Field(default=None, description="Seconds, for overload.")


class ErrorReply(BaseModel):
    """The body of every failed call."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorReply, "description": text}
    for code, text in (
        (400, "A field is wrong, or what is asked for cannot be done."),
        (401, "No bearer token, or a wrong one."),
        (403, "The token doesn't allow it."),
        (413, "The body is too large."),
        (429, "Overload: Retry-After says when to come back."),
        (500, "The computation failed."),
        (503, "The server is starting or draining."),
        (504, "The timeout passed."),
    )
}
"""What OpenAPI says of the errors of a route that does work."""
