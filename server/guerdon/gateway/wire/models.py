"""GET /v1/models: the gateway's model, bare and by the numbers and presets that may be asked."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.gateway.asked import PlanLimits, own_fields, told
from guerdon.gateway.wire.asking import Names
from guerdon.serving.access.identity import Role
from guerdon.serving.openai.replies import model_entry, models_reply


class ModelRoutes:
    """The list, and each name by itself.

    Each says what it asks for; the list, what else may be asked for.
    """

    def __init__(self, names: Names, limits: PlanLimits) -> None:
        created = int(time.time())
        self._entries = {
            f"/v1/models/{name}": model_entry(
                name, created, guerdon=told(names.asked(name), limits)
            )
            for name in names.listed()
        }
        self._choice = {
            "max_best_of": limits.max_best_of,
            "reward_models": [*limits.models],
            "strategies": own_fields(limits),
        }

    @property
    def roles(self) -> dict[str, Role | None]:
        """What a caller of each path needs: any known one may."""
        return dict.fromkeys(("/v1/models", *self._entries))

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        tags: list[str] = ["OpenAI's API"]
        app.add_api_route("/v1/models", self.models, summary="The names to ask for", tags=[*tags])
        for path in self._entries:
            app.add_api_route(path, self.model, include_in_schema=False)

    async def models(self) -> Response:
        """All names."""
        return JSONResponse({**models_reply(self._entries.values()), "guerdon": self._choice})

    async def model(self, request: Request) -> Response:
        """One name."""
        return JSONResponse(self._entries[request.scope["path"]])
