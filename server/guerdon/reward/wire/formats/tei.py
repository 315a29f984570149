"""text-embeddings-inference over HTTP: /predict and /rerank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import grpc
from pydantic import Field

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import ScoreItem, Truncation, Unrendered
from guerdon.reward.wire.formats.format import B, Format, FormatRequest, Json, Pairs, final_scores
from guerdon.reward.wire.formats.rerank import RankFormat
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import ForeignBody, ManyTexts
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus

_ERROR_TYPES = {
    grpc.StatusCode.INVALID_ARGUMENT: (422, "Validation"),
    grpc.StatusCode.FAILED_PRECONDITION: (422, "Validation"),
    grpc.StatusCode.NOT_FOUND: (404, "Validation"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "Overloaded"),
    grpc.StatusCode.UNAVAILABLE: (503, "Unhealthy"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "Unauthorized"),
}
_OTHER_ERROR = (424, "Backend")


class TEIBody(ForeignBody):
    """What both kinds of requests hold."""

    truncate: bool = False
    truncation_direction: Literal["Right", "Left", "right", "left"] = "Right"
    raw_scores: bool = False


class TEIFormat(Format[B]):
    """What the formats of text-embeddings-inference have in common."""

    def code(self, status: ErrorStatus) -> int:
        return error_code(status)

    def error(self, status: ErrorStatus) -> Json:
        return error_body(status)


def error_code(status: ErrorStatus) -> int:
    """The HTTP status of an error."""
    return _ERROR_TYPES.get(status.code, _OTHER_ERROR)[0]


def error_body(status: ErrorStatus) -> Json:
    """The body of an error."""
    _, error_type = _ERROR_TYPES.get(status.code, _OTHER_ERROR)
    return {"error": status.message, "error_type": error_type}


class PredictBody(TEIBody):
    """A text, a pair of texts, or a batch of either."""

    inputs: Pairs


class Predict(TEIFormat[PredictBody]):
    """text-embeddings-inference's /predict."""

    paths = ("/predict",)
    body = PredictBody
    items_field = "inputs"

    def ask(self, body: PredictBody) -> FormatRequest:
        items = [self._item(entry, field) for field, entry in _entries(body)]
        return FormatRequest(items=items, truncation=_truncation(body))

    def reply(self, body: PredictBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=body.raw_scores)
        replies = [[{"score": score, "label": scored.info.label}] for score in scores]
        return replies if _is_batch(body) else replies[0]

    def _item(self, entry: list[str], field: str) -> ScoreItem:
        if len(entry) == 1:
            return self.text(entry[0], Unrendered.PLAIN)
        if len(entry) == 2:
            return ScoreItem(entry[0], (entry[1],))
        raise InvalidRequest(field, "must be a text or a pair of texts; a batch is a list of lists")


def _is_batch(body: PredictBody) -> bool:
    """Whether its inputs are several; a list of texts alone is a pair."""
    return isinstance(body.inputs, list) and isinstance(body.inputs[0], list)


def _entries(body: PredictBody) -> list[tuple[str, list[str]]]:
    """Each input with its field: one text, or a pair."""
    if isinstance(body.inputs, str):
        return [("inputs", [body.inputs])]
    if not body.inputs:
        raise InvalidRequest("inputs", "must have at least one entry")
    if isinstance(body.inputs[0], str):
        return [("inputs", [str(text) for text in body.inputs])]
    return [(f"inputs[{place}]", list(entry)) for place, entry in enumerate(body.inputs)]


class TEIRerankBody(TEIBody):
    """A query and texts."""

    query: Text
    texts: Annotated[ManyTexts, Field(min_length=1)]
    return_text: bool = False


class TEIRerank(TEIFormat[TEIRerankBody], RankFormat[TEIRerankBody]):
    """text-embeddings-inference's /rerank: the best texts first."""

    paths = ("/rerank",)
    body = TEIRerankBody
    items_field = "texts"

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "texts" in value

    def ask(self, body: TEIRerankBody) -> FormatRequest:
        item = ScoreItem(body.query, tuple(body.texts))
        return FormatRequest(items=[item], ranks=True, truncation=_truncation(body))

    def reply(self, body: TEIRerankBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=body.raw_scores)
        return [
            {
                "index": place,
                "score": scores[place],
                **({"text": body.texts[place]} if body.return_text else {}),
            }
            for place in scored.ranking()
        ]


def _truncation(body: TEIBody) -> Truncation:
    """What to do with what is too long; its end, where answers are, is never cut."""
    if body.truncate and body.truncation_direction.lower() == "right":
        raise InvalidRequest(
            "truncation_direction", "must be Left: the end of a text, with the answer, is not cut"
        )
    return Truncation.PROMPT_LEFT if body.truncate else Truncation.REJECT
