"""OpenAI's /v1/embeddings, by which SGLang gives rewards: a vector of one number."""

from __future__ import annotations

import base64
import struct
from typing import Literal

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.wire.formats.format import (
    Asked,
    ForeignBody,
    Format,
    Inputs,
    Json,
    count_tokens,
    openai_error,
    raw_scores,
)
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class EmbeddingsBody(ForeignBody):
    """Texts or token ids."""

    model: Text = ""
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[1] | None = None


class Embeddings(Format[EmbeddingsBody]):
    """OpenAI's /v1/embeddings: raw scores."""

    paths = ("/v1/embeddings",)
    body = EmbeddingsBody
    items_field = "input"
    overload_code = 503  # verl's client tries again, and after 429 not

    def ask(self, body: EmbeddingsBody) -> Asked:
        return Asked(items=self.texts(body.input), model=body.model)

    def reply(self, body: EmbeddingsBody, scored: Scored) -> Json:
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": _base64(score) if body.encoding_format == "base64" else [score],
            }
            for place, score in enumerate(raw_scores(scored))
        ]
        tokens = count_tokens(scored)
        return {
            "object": "list",
            "data": data,
            "model": scored.info.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def error(self, status: ErrorStatus) -> Json:
        return openai_error(status, self.code(status))


def _base64(score: float) -> str:
    """A float32, little-endian."""
    return base64.b64encode(struct.pack("<f", score)).decode()
