"""The JSON twins of the messages that services share, for the HTTP side.

A prompt is text, a list of messages, `{"messages": […], "tools": […]}`, `{"token_ids": […]}` or
`{"formatted_text": …}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from guerdon.data import read_message, read_template_kwargs, read_tools
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.prompts import MAX_TOKEN_ID, Conversation, FormattedText, Message, Prompt
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


class Said(BaseModel):
    """A part of a message: `read_message` looks at what else it holds."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class TextPartBody(Said):
    """A part of a message that is text."""

    type: Literal["text", "input_text", "output_text"]
    text: Text


class FunctionCallBody(Body):
    """A function that is called."""

    name: Text = Field(min_length=1)
    arguments: Annotated[
        Annotated[Text, Tag("@json")] | Annotated[dict[str, Any], Tag("@object")],
        Discriminator(lambda value: "@object" if isinstance(value, dict) else "@json"),
    ] = Field(default_factory=dict, description="An object, or the JSON of one.")


class ToolCallBody(Body):
    """A call of a tool by an assistant."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: FunctionCallBody


class MessageBody(Said):
    """One turn of a conversation."""

    role: Text = Field(min_length=1, description='Usually "system", "user" or "assistant".')
    content: (
        Annotated[
            Annotated[Text, Tag("@text")]
            | Annotated[list[TextPartBody], Field(fail_fast=True), Tag("@parts")],
            Discriminator(lambda value: "@parts" if isinstance(value, list) else "@text"),
        ]
        | None
    ) = Field(default=None, description="May be null beside tool calls alone.")
    name: Text | None = Field(default=None, description="Who speaks, or which tool answers.")
    reasoning_content: Text | None = Field(
        default=None, description="What an assistant thought before it spoke."
    )
    tool_calls: Annotated[list[ToolCallBody], Field(fail_fast=True)] | None = None
    tool_call_id: Text | None = Field(default=None, description="The call that a tool answers.")


class ConversationBody(Body):
    """Turns, and what the model's chat template is given beside them."""

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(
        default=None, description="Tools that the assistant may call, as in OpenAI's API."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables of the chat template, such as enable_thinking."
    )


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
    if isinstance(value, ConversationBody):
        return "@conversation"
    if isinstance(value, dict):
        forms = {"formatted_text": "@formatted", "messages": "@conversation"}
        return next((form for key, form in forms.items() if key in value), "@tokens")
    return "@text"


PromptBody = Annotated[
    Annotated[Text, Tag("@text")]
    | Annotated[list[MessageBody], Field(min_length=1, fail_fast=True), Tag("@messages")]
    | Annotated[ConversationBody, Tag("@conversation")]
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


def as_prompt(body: Any, field: str) -> Prompt:
    """A `PromptBody` in the domain's terms; `field` is its path in the request."""
    if isinstance(body, TokenIdsBody):
        return np.asarray(body.token_ids, dtype=np.int32)
    if isinstance(body, FormattedTextBody):
        return FormattedText(body.formatted_text)
    if isinstance(body, str):
        return body
    if not isinstance(body, ConversationBody):
        return Conversation(_messages(body, field))
    return Conversation(
        _messages(body.messages, f"{field}.messages"),
        read_tools(body.tools, f"{field}.tools", InvalidRequest),
        read_template_kwargs(
            body.chat_template_kwargs, f"{field}.chat_template_kwargs", InvalidRequest
        ),
    )


def as_message(body: MessageBody, field: str) -> Message:
    """A message in its normal form; `field` is its path in the request."""
    return read_message(body.model_dump(exclude_none=True), field, InvalidRequest, strict=True)


def _messages(bodies: Sequence[MessageBody], field: str) -> tuple[Message, ...]:
    return tuple(as_message(body, f"{field}[{i}]") for i, body in enumerate(bodies))


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
