"""SGLang's /classify: rewards as embeddings of one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.wire.formats.format import (
    Asked,
    ForeignBody,
    Json,
    OpenAIFormat,
    Texts,
)
from guerdon.serving.http.schemas import Text


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

    def ask(self, body: ClassifyBody) -> Asked:
        return Asked(items=self.texts(body.text), model=body.model)

    def reply(self, body: ClassifyBody, scored: Scored) -> Json:
        replies: list[dict[str, Any]] = [
            {
                "embedding": [score.score],
                "meta_info": {"prompt_tokens": score.token_count, "cached_tokens": 0},
            }
            for (score,) in scored.items
        ]
        return replies[0] if isinstance(body.text, str) else replies
