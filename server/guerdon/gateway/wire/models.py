"""GET /v1/models: the gateway's model, bare and by the numbers and presets that may be asked."""

from __future__ import annotations

import time

from guerdon.gateway.plans import PlanLimits, plan_json, strategies_json
from guerdon.gateway.wire.partial_plans import ModelNames
from guerdon.serving.openai.models import ModelRoutes
from guerdon.serving.openai.replies import Json, model_entry


def model_routes(names: ModelNames, limits: PlanLimits) -> ModelRoutes:
    """The list of names, each with what it asks for, and what else may be asked for."""
    created = int(time.time())

    def entry(name: str) -> Json:
        return model_entry(name, created, guerdon=plan_json(names.partial_plan(name), limits))

    choice = {
        "max_best_of": limits.max_best_of,
        "reward_models": [*limits.models],
        **strategies_json(limits),
    }
    return ModelRoutes(names.listed(), entry, guerdon=choice)
