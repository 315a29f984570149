"""OpenAI's /v1/embeddings, by which SGLang gives rewards: a vector of one number."""

from __future__ import annotations

import base64
import struct
from typing import Literal

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.wire.formats.format import FormatRequest, Json, OpenAIFormat, raw_scores, usage
from guerdon.serving.http.foreign import ForeignBody, Inputs
from guerdon.serving.http.schemas import Text


class EmbeddingsBody(ForeignBody):
    """Texts or token ids."""

    model: Text = ""
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[1] | None = None


class Embeddings(OpenAIFormat[EmbeddingsBody]):
    """OpenAI's /v1/embeddings: raw scores."""

    paths = ("/v1/embeddings",)
    body = EmbeddingsBody
    items_field = "input"
    overload_code = 503  # verl's client tries again, and after 429 not

    def ask(self, body: EmbeddingsBody) -> FormatRequest:
        return FormatRequest(items=self.texts(body.input), model=body.model)

    def reply(self, body: EmbeddingsBody, scored: Scored) -> Json:
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": _base64(score) if body.encoding_format == "base64" else [score],
            }
            for place, score in enumerate(raw_scores(scored))
        ]
        return {"object": "list", "data": data, "model": scored.info.name, "usage": usage(scored)}


def _base64(score: float) -> str:
    """A float32, little-endian."""
    return base64.b64encode(struct.pack("<f", score)).decode()
