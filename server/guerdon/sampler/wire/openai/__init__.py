"""OpenAI's API on the sampler: chat and text completions, and the list of models."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import FastAPI

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Sampler
from guerdon.sampler.types import PolicyEngine
from guerdon.sampler.wire.openai.endpoints import ChatEndpoint, TextEndpoint
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import CountedCalls
from guerdon.serving.openai.models import ModelRoutes
from guerdon.serving.openai.replies import Json, model_entry
from guerdon.serving.openai.routes import OpenAIRoutes


class SamplerAPI:
    """The routes of OpenAI's API.

    Args:
        name: what the policy is called.
    """

    def __init__(
        self,
        sampler: Sampler,
        engine: PolicyEngine,
        name: str,
        calls: CountedCalls,
        limits: RequestLimits,
    ) -> None:
        self._engine = engine
        self._calls = calls
        self._created = int(time.time())
        endpoints = (kind(sampler, engine, name, limits) for kind in (ChatEndpoint, TextEndpoint))
        self._completions = OpenAIRoutes(calls, sampler, *endpoints)
        self._models = ModelRoutes([name], self._entry)

    @property
    def roles(self) -> Mapping[str, Role | None]:
        """What a caller of each path needs; None: any known caller may."""
        paths = (ChatEndpoint.path, TextEndpoint.path)
        return {**dict.fromkeys(paths, Role.SAMPLE), **self._models.roles}

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        self._completions.add_to(app)
        self._models.add_to(app)

    def _entry(self, name: str) -> Json:
        with self._calls.serve("http_models", None):
            info = self._engine.info
            return model_entry(
                name,
                self._created,
                root=info.model,
                max_model_len=info.max_tokens,
                guerdon={"weight_version": self._engine.version},
            )
