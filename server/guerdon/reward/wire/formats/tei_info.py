"""What text-embeddings-inference tells of a model and its limits, at `GET /info` and by gRPC."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.models.registry import Registry
from guerdon.reward.types import ModelInfo, PriorityClass
from guerdon.reward.wire.formats.format import Json
from guerdon.reward.wire.formats.routes import ModelInPath
from guerdon.reward.wire.formats.scoring import FormatScorer
from guerdon.reward.wire.formats.tei import error_body, error_code
from guerdon.serving.access.identity import Role
from guerdon.serving.http.bodies import method_name
from guerdon.serving.status import describe


@dataclass(frozen=True, kw_only=True)
class TEILimits:
    """The server's limits, which Info tells and the streams keep."""

    max_calls: int
    max_batch_tokens: int
    max_batch_sequences: int
    max_texts: int
    encode_threads: int
    stream_items: int
    """Requests in flight on one stream."""
    max_message_bytes: int
    """Bytes of a message, and of all messages of a RerankStream together."""


class TEIInfo:
    """Finds the model that is told of, and the fields that both APIs have."""

    def __init__(self, registry: Registry, format_scorer: FormatScorer, limits: TEILimits) -> None:
        self._registry = registry
        self._format_scorer = format_scorer
        self._limits = limits

    def model(self, call: ScoringCall, name: str) -> ModelInfo:
        """The model of requests that name one so.

        Args:
            name: empty for those that name none.
        """
        spec = self._format_scorer.spec(name)
        call.asks(spec, PriorityClass.ONLINE)
        return self._registry.resolve(spec).info

    def fields(self, info: ModelInfo) -> dict[str, Any]:
        """What is told of a model, and of the server."""
        return {
            "version": importlib.metadata.version("guerdon"),
            "model_id": info.name,
            "model_sha": info.revision,
            "model_dtype": info.dtype,
            "max_concurrent_requests": self._limits.max_calls,
            "max_input_length": info.max_tokens,
            "max_batch_tokens": self._limits.max_batch_tokens,
            "max_batch_requests": self._limits.max_batch_sequences,
            "max_client_batch_size": self._limits.max_texts,
            "tokenization_workers": self._limits.encode_threads,
        }


class InfoRoute:
    """text-embeddings-inference's `GET /info`."""

    ROLES: Final[Mapping[str, Role | None]] = {"/info": None}

    def __init__(self, calls: ScoringCalls, info: TEIInfo) -> None:
        self._calls = calls
        self._info = info

    def add_to(self, app: FastAPI) -> None:
        """Add it to an app."""
        for path in self.ROLES:
            app.add_api_route(
                path,
                self._serve,
                methods=["GET"],
                summary="text-embeddings-inference's /info: the model and the server's limits.",
                tags=["other formats"],
            )

    async def _serve(self, request: Request) -> Response:
        try:
            with self._calls.serve(method_name(request.scope["path"]), None) as call:
                info = self._info.model(call, request.scope.get(ModelInPath.KEY, ""))
                return JSONResponse({**self._info.fields(info), **_told_over_http(info)})
        except Exception as error:
            status = describe(error)
            return JSONResponse(error_body(status), error_code(status), status.http_headers())


def _told_over_http(info: ModelInfo) -> Json:
    """The fields that gRPC does not have, or not so."""
    labels = {"id2label": {"0": info.label}, "label2id": {info.label: 0}}
    return {
        "served_model_name": info.name,
        "model_type": {"reranker": labels},
        "auto_truncate": False,
        "sha": None,
        "docker_label": None,
    }
