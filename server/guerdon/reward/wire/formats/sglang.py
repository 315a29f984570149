"""SGLang's /classify, rewards as embeddings of one number, and its /v1/rerank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import ResponseScore
from guerdon.reward.wire.formats.format import FormatRequest, Json, OpenAIFormat
from guerdon.reward.wire.formats.rerank import Rerank, RerankBody
from guerdon.serving.http.foreign import ForeignBody, Texts
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class ClassifyBody(ForeignBody):
    """A rendered conversation, or several."""

    model: Text = ""
    text: Texts


class SGLangClassify(OpenAIFormat[ClassifyBody]):
    """SGLang's /classify: an object for a text, a list for a list."""

    paths = ("/classify",)
    body = ClassifyBody
    items_field = "text"
    overload_code = 503
    methods = ("POST", "PUT")

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "text" in value

    def ask(self, body: ClassifyBody) -> FormatRequest:
        return FormatRequest(items=self.texts(body.text), model=body.model)

    def reply(self, body: ClassifyBody, scored: Scored) -> Json:
        replies: list[dict[str, Any]] = [
            {"embedding": [score.score], "meta_info": _meta_info(score)}
            for (score,) in scored.items
        ]
        return replies[0] if isinstance(body.text, str) else replies


class SGLangRerank(Rerank):
    """SGLang's /v1/rerank: a list of raw scores, the best documents first."""

    paths = ("/v1/rerank",)
    methods = ("POST", "PUT")

    def serves(self, path: str) -> bool:
        return self._settings.v1_rerank == "sglang"

    def reply(self, body: RerankBody, scored: Scored) -> Json:
        (scores,), texts = scored.items, body.texts()
        return [
            {
                "score": scores[place].score,
                **({"document": texts[place]} if body.return_documents else {}),
                "index": place,
                "meta_info": _meta_info(scores[place]),
            }
            for place in scored.ranking(body.top_n)
        ]

    def error(self, status: ErrorStatus) -> Json:
        return {"object": "error", **super().error(status)["error"]}


def _meta_info(score: ResponseScore) -> Json:
    return {"prompt_tokens": score.token_count, "cached_tokens": 0}
