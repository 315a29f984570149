"""GET /v1/models: the one policy, as OpenAI's clients list models."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.sampler.call_metrics import SamplerCalls
from guerdon.sampler.types import PolicyEngine
from guerdon.serving.http.bodies import method_name
from guerdon.serving.openai.replies import model_entry, models_reply


class ModelsRoute:
    """Lists the policy.

    Args:
        name: what it is called.
    """

    path = "/v1/models"

    def __init__(self, engine: PolicyEngine, name: str, calls: SamplerCalls) -> None:
        self._engine = engine
        self._name = name
        self._calls = calls
        self._created = int(time.time())

    def add_to(self, app: FastAPI) -> None:
        """Add it to an app."""
        app.add_api_route(
            self.path, self.models, summary="The policy, as OpenAI's API", tags=["OpenAI's API"]
        )

    async def models(self, request: Request) -> Response:
        """Answer as OpenAI does."""
        with self._calls.serve(method_name(request.url.path), None):
            info = self._engine.info
            entry = model_entry(
                self._name,
                self._created,
                root=info.model,
                max_model_len=info.max_tokens,
                guerdon={"weight_version": self._engine.version},
            )
            return JSONResponse(models_reply([entry]))
