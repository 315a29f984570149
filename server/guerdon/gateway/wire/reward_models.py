"""GET /v1/reward_models: the cards of the reward models, as their servers give them now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from guerdon.serving.access.identity import Role
from guerdon.serving.openai.replies import Json

PATH = "/v1/reward_models"
ROLES: Mapping[str, Role | None] = {PATH: None}
"""Any known caller may, as on the reward server."""


def add_reward_models(
    app: FastAPI,
    cards: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]],
    page: str,
) -> None:
    """Add the route to an app.

    Args:
        app: gets the route.
        cards: looks at the models.
        page: address of a reward server's playground; empty where nobody gave one.
    """

    async def reward_models() -> Response:
        """A model that can't be looked at now has its `name` and a `reason` alone."""
        found: Json = {"models": [*await cards()]}
        return JSONResponse({**found, "page": page} if page else found)

    app.add_api_route(PATH, reward_models, summary="The reward models' cards", tags=["rewards"])
