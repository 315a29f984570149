"""OpenAI's API on the sampler: chat and text completions, and the list of models."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from guerdon.sampler.call_metrics import SamplerCalls
from guerdon.sampler.sampling import Sampler
from guerdon.sampler.types import PolicyEngine
from guerdon.sampler.wire.openai.endpoints import ChatEndpoint, TextEndpoint
from guerdon.sampler.wire.openai.models import ModelsRoute
from guerdon.serving.access.identity import Role
from guerdon.serving.openai.routes import OpenAIRoutes

ROLES: Mapping[str, Role | None] = {
    ChatEndpoint.path: Role.SAMPLE,
    TextEndpoint.path: Role.SAMPLE,
    ModelsRoute.path: None,
}
"""What a caller of each path needs; None: any known caller may."""


def add_routes(
    app: FastAPI, sampler: Sampler, engine: PolicyEngine, name: str, calls: SamplerCalls
) -> None:
    """Add the routes to an app; `name` is what the policy is called."""
    endpoints = (kind(sampler, engine, name) for kind in (ChatEndpoint, TextEndpoint))
    OpenAIRoutes(calls, sampler, *endpoints).add_to(app)
    ModelsRoute(engine, name, calls).add_to(app)
