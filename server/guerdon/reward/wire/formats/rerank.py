"""Rerankers: Cohere v1 and v2, Jina, vLLM and SGLang, at /rerank, /v1/rerank, /v2/rerank."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import ScoreItem
from guerdon.reward.wire.formats.format import (
    Asked,
    B,
    ForeignBody,
    Format,
    Json,
    count_tokens,
    openai_error,
    probabilities,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class RerankBody(ForeignBody):
    """A query and documents, which may be objects with a text."""

    model: Text = ""
    query: Text
    documents: list[Text | dict[str, Any]] = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    rank_fields: list[Text] | None = None
    max_tokens_per_doc: int | None = Field(default=None, ge=1)
    instruction: Text | None = None
    instruct: Text | None = None

    def texts(self) -> list[str]:
        """The documents as texts."""
        fields = self.rank_fields or ["text"]
        return [
            document if isinstance(document, str) else _object_text(document, fields, place)
            for place, document in enumerate(self.documents)
        ]


def _object_text(document: dict[str, Any], fields: list[str], place: int) -> str:
    """A document's fields that are ranked, as one text; Cohere writes several as YAML."""
    texts = [document.get(field) for field in fields]
    if not all(isinstance(text, str) for text in texts):
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


class Rerank(RankFormat[RerankBody]):
    """Cohere's, Jina's and vLLM's rerankers: the best documents first."""

    paths: ClassVar[tuple[str, ...]] = ("/rerank", "/v1/rerank", "/v2/rerank")
    body = RerankBody

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "texts" not in value and "instruct" not in value

    def ask(self, body: RerankBody) -> Asked:
        for name in ("instruction", "instruct"):
            if getattr(body, name):
                raise InvalidRequest(name, "can't be set: the model's own template is used")
        if body.max_tokens_per_doc is not None:
            raise InvalidRequest("max_tokens_per_doc", "can't be set: no document is cut")
        item = ScoreItem(body.query, tuple(body.texts()))
        return Asked(items=[item], model=body.model, ranks=True)

    def reply(self, body: RerankBody, scored: Scored) -> Json:
        scores, texts = probabilities(scored), body.texts()
        tokens = count_tokens(scored)
        results = []
        for place in scored.ranking(body.top_n or 0):
            result: dict[str, Json] = {"index": place, "relevance_score": scores[place]}
            if body.return_documents is not False:
                result["document"] = {"text": texts[place]}
            results.append(result)
        return {
            "id": str(uuid.uuid4()),
            "model": body.model or scored.info.name,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }

    def error(self, status: ErrorStatus) -> Json:
        """As each of the clients reads it."""
        message = {"message": status.message, "detail": status.message}
        return {**message, **openai_error(status, self.code(status))}


class SGLangRerank(Rerank):
    """SGLang's /v1/rerank: a list, the best documents first."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/rerank",)

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "instruct" in value

    def reply(self, body: RerankBody, scored: Scored) -> Json:
        scores, texts = probabilities(scored), body.texts()
        shown = body.return_documents is not False
        return [
            {
                "score": scores[place],
                "document": texts[place] if shown else None,
                "index": place,
                "meta_info": {"prompt_tokens": scored.items[0][place].token_count},
            }
            for place in scored.ranking(body.top_n or 0)
        ]
