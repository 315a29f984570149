"""Rerankers: Cohere v1 and v2, Jina and vLLM, at /rerank, /v1/rerank, /v2/rerank."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import ScoreItem
from guerdon.reward.wire.formats.format import (
    B,
    Format,
    FormatRequest,
    Json,
    OpenAIFormat,
    final_scores,
    usage,
)
from guerdon.reward.wire.formats.vllm import REFUSED_OF_PAIRS
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import ForeignBody, ManyTexts
from guerdon.serving.http.schemas import Text, is_unicode
from guerdon.serving.status import ErrorStatus


class RerankBody(ForeignBody):
    """A query and documents, which may be objects with a text."""

    model: Text = ""
    query: Text
    documents: Annotated[list[Text | dict[str, Any]], Field(min_length=1, fail_fast=True)]
    top_n: int = Field(default=0, ge=0, validation_alias=AliasChoices("top_n", "top_k"))
    return_documents: bool = True
    rank_fields: ManyTexts = Field(default=["text"])
    use_activation: bool = True

    def texts(self) -> list[str]:
        """The documents as texts."""
        return [
            document
            if isinstance(document, str)
            else _object_text(document, self.rank_fields, place)
            for place, document in enumerate(self.documents)
        ]


def _object_text(document: dict[str, Any], fields: list[str], place: int) -> str:
    """A document's fields that are ranked, as one text; Cohere writes several as YAML."""
    texts = [document.get(field) for field in fields]
    if not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise InvalidRequest(f"documents[{place}]", f"needs texts named {', '.join(fields)}")
    if len(texts) == 1:
        return str(texts[0])
    return "".join(f"{field}: {text}\n" for field, text in zip(fields, texts, strict=True))


class RankFormat(Format[B]):
    """What formats that rank the documents of a query have in common."""

    items_field = "documents"

    def field(self, path: str) -> str:
        path = path.replace("candidates", self.items_field, 1)
        return "query" if path.startswith("prompt") else path.removesuffix(".text")


class Rerank(RankFormat[RerankBody], OpenAIFormat[RerankBody]):
    """Cohere's, Jina's and vLLM's rerankers: the best documents first."""

    paths: ClassVar[tuple[str, ...]] = ("/rerank", "/v1/rerank", "/v2/rerank")
    body = RerankBody
    refuses = REFUSED_OF_PAIRS

    def serves(self, path: str) -> bool:
        return path != "/v1/rerank" or self._settings.v1_rerank == "cohere"

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "texts" not in value

    def ask(self, body: RerankBody) -> FormatRequest:
        item = ScoreItem(body.query, tuple(body.texts()))
        return FormatRequest(items=[item], model=body.model, ranks=True)

    def reply(self, body: RerankBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=not body.use_activation)
        texts = body.texts()
        results = []
        for place in scored.ranking(body.top_n):
            result: dict[str, Json] = {"index": place, "relevance_score": scores[place]}
            if body.return_documents:
                result["document"] = {"text": texts[place]}
            results.append(result)
        return {
            "id": str(uuid.uuid4()),
            "model": scored.info.name,
            "results": results,
            "usage": usage(scored),
        }

    def error(self, status: ErrorStatus) -> Json:
        """The body of an error, as each of the clients reads it."""
        message = {"message": status.message, "detail": status.message}
        return {**message, **super().error(status)}
