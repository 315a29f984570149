"""What bodies of other systems' requests are made of, for every service that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from guerdon.data import read_message
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.routes import validated
from guerdon.serving.http.schemas import Text
from guerdon.serving.prompts import MAX_TOKEN_ID, Message


def field_form(value: Any) -> str:
    """Which form a field has, by its first entry; the tag's @ keeps it out of error paths."""
    if not isinstance(value, list):
        return "@text"
    if value and isinstance(value[0], list):
        return "@lists"
    return "@ids" if value and isinstance(value[0], int) else "@texts"


class ForeignBody(BaseModel):
    """A part of another system's request: keys that mean nothing here are ignored."""

    model_config = ConfigDict(
        extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


B = TypeVar("B", bound=ForeignBody)

# A list fails at its first fault: each further one would cost memory and time.
ManyTexts = Annotated[list[Text], Field(fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(fail_fast=True)]
Texts = Annotated[
    Annotated[Text, Tag("@text")] | Annotated[ManyTexts, Tag("@texts")],
    Discriminator(
        field_form,
        custom_error_type="form",
        custom_error_message="must be a text or a list of texts",
    ),
]
"""One text, or several."""
Inputs = Annotated[
    Annotated[Text, Tag("@text")]
    | Annotated[ManyTexts, Tag("@texts")]
    | Annotated[TokenIds, Tag("@ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("@lists")],
    Discriminator(field_form),
]
"""One text or its token ids, or several."""
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class TemplateBody(ForeignBody):
    """What a request gives a chat template beside its messages."""

    tools: Messages | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def read_body(kind: type[B], value: Mapping[str, Any]) -> B:
    """A body as its model; null is the same as a key that is left out.

    Raises:
        InvalidRequest: names the first field at fault.
    """
    return validated(kind, {name: entry for name, entry in value.items() if entry is not None})


def read_turns(messages: Sequence[dict[str, Any]], field: str) -> list[Message]:
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
