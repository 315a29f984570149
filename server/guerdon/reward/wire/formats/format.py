"""What every format has: how a body is read, how scores are written, how errors are told."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import grpc
import numpy as np
from pydantic import Discriminator, Field, Tag

from guerdon.data import as_answer, read_template_inputs
from guerdon.reward.request_limits import FormatSettings
from guerdon.reward.scoring.scorer import Scored, sigmoid
from guerdon.reward.types import (
    Conversation,
    Dropped,
    ForeignText,
    Message,
    PriorityClass,
    ScoreItem,
    Truncation,
    Unrendered,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import (
    ForeignBody,
    ManyTexts,
    Messages,
    TemplateBody,
    field_form,
    read_body,
)
from guerdon.serving.http.schemas import Text
from guerdon.serving.openai.replies import openai_error
from guerdon.serving.status import ErrorStatus

Json = Any
"""Whatever JSON can hold."""


Pairs = Annotated[
    Annotated[Text, Tag("@text")]
    | Annotated[ManyTexts, Tag("@texts")]
    | Annotated[list[ManyTexts], Field(fail_fast=True), Tag("@lists")],
    Discriminator(
        field_form,
        custom_error_type="form",
        custom_error_message="must be a text, a list of texts or a list of such lists",
    ),
]
"""A text, a pair of texts, or several of either."""

B = TypeVar("B", bound=ForeignBody)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FormatRequest:
    """What a request asks for, in the service's terms."""

    items: Sequence[ScoreItem]
    model: str = ""
    """Empty where it names none."""
    ranks: bool = False
    """Whether the responses of its one item are compared with each other."""
    truncation: Truncation = Truncation.REJECT
    if_empty: Json = None
    """The answer where it has no items; None refuses it."""
    dropped: frozenset[Dropped] = frozenset()
    """What of the request is not part of the items."""


class Format(ABC, Generic[B]):
    """A format of one path or several.

    Args:
        settings: the server's.
    """

    paths: ClassVar[tuple[str, ...]]
    body: type[B]
    """Model of a request's body."""
    hold_seconds: ClassVar[float] = 0.0
    """Seconds for which a request waits through overload and restarts of an engine, a little less
    than its client waits for an answer; 0 tells the client at once."""
    priority: ClassVar[PriorityClass] = PriorityClass.ONLINE
    items_field: ClassVar[str] = "items"
    """The field that holds what is scored."""
    overload_code: ClassVar[int] = 429
    """HTTP status of overload."""
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    refuses: ClassVar[Mapping[str, str]] = {}
    """Keys that would change scores in the other system and can't here, with the reason."""

    def __init__(self, settings: FormatSettings) -> None:
        self._settings = settings

    def serves(self, path: str) -> bool:
        """Whether one of its paths is served by it, as the settings are."""
        return True

    def reads(self, value: Mapping[str, Json]) -> bool:
        """Whether a body is of this format and not of another one of the same path."""
        return True

    def read(self, value: Mapping[str, Json]) -> B:
        """A body as its model; null is the same as a key that is left out.

        Raises:
            InvalidRequest: names the first field at fault.
        """
        for name, reason in self.refuses.items():
            if value.get(name):
                raise InvalidRequest(name, reason)
        return read_body(self.body, value)

    @abstractmethod
    def ask(self, body: B) -> FormatRequest:
        """What a body asks for.

        Raises:
            InvalidRequest: a field is wrong, by the format's own name of it.
        """

    @abstractmethod
    def reply(self, body: B, scored: Scored) -> Json:
        """The answer: scores in the order that the format wants."""

    def field(self, path: str) -> str:
        """The format's name of a field of an item, such as `items[2].responses[0].text`."""
        found = re.match(r"items(\[\d+\])?", path)
        if found is None:
            return path
        _, conversation, turn = path.partition(".prompt.conversation.")
        return turn if conversation else f"{self.items_field}{found[1] or ''}"

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error with the format's own name of its field."""
        return InvalidRequest(self.field(error.field), error.reason)

    def code(self, status: ErrorStatus) -> int:
        """The HTTP status of an error."""
        overload = status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        return self.overload_code if overload else status.http_code

    def error(self, status: ErrorStatus) -> Json:
        """The body of an error."""
        return {"error": status.message}

    def texts(self, inputs: Any, otherwise: Unrendered = Unrendered.PLAIN) -> list[ScoreItem]:
        """An item for each of `Inputs`; see `text`.

        Raises:
            InvalidRequest: there is none.
        """
        alone = isinstance(inputs, list) and inputs and isinstance(inputs[0], int)
        several = [inputs] if alone else entries(inputs, self.items_field)
        return [self.text(one, otherwise) for one in several]

    def text(
        self, text: str | Sequence[int], otherwise: Unrendered, response: str = ""
    ) -> ScoreItem:
        """An item of text that its client may have rendered, or of token ids."""
        given = text if isinstance(text, str) else np.asarray(text, dtype=np.int32)
        prompt = ForeignText(given, otherwise, complete=self._settings.tail == "complete")
        return ScoreItem(prompt, (response,))


class OpenAIFormat(Format[B]):
    """What formats whose errors OpenAI's and vLLM's clients read have in common."""

    def error(self, status: ErrorStatus) -> Json:
        return openai_error(status, self.code(status))


def raw_scores(scored: Scored) -> list[float]:
    """The scores of all items, one after the other."""
    return [score.score for scores in scored.items for score in scores]


def final_scores(scored: Scored, *, raw: bool) -> list[float]:
    """The scores raw, or through the sigmoid unless the checkpoint says they are no logits."""
    scores, info = raw_scores(scored), scored.info
    plain = raw or info.regression or info.probability
    return scores if plain else [sigmoid(score) for score in scores]


def count_tokens(scored: Scored) -> int:
    """Tokens of all sequences."""
    return sum(score.token_count for scores in scored.items for score in scores)


def usage(scored: Scored) -> Json:
    """The tokens of a request, as OpenAI's clients read them."""
    tokens = count_tokens(scored)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def entries(value: T | list[T], field: str) -> list[T]:
    """One entry, or each of several.

    Raises:
        InvalidRequest: there is none.
    """
    if not isinstance(value, list):
        return [value]
    if not value:
        raise InvalidRequest(field, "must have at least one entry")
    return value


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
    return ScoreItem(Conversation.of(messages[:-1], inputs), (as_answer(messages[-1]),))
