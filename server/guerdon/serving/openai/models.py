"""GET /v1/models, and each model by itself, as OpenAI's clients list and look them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.serving.access.identity import Role
from guerdon.serving.errors import ServiceError
from guerdon.serving.openai.replies import Json, models_reply, openai_error
from guerdon.serving.status import describe

PATH = "/v1/models"


class ModelRoutes:
    """Lists models.

    Args:
        names: of the models.
        entry: what is told of one, by its name.
        beside: what the list tells beside them.
    """

    def __init__(self, names: Sequence[str], entry: Callable[[str], Json], **beside: Any) -> None:
        self._names = {f"{PATH}/{name}": name for name in names}
        self._entry = entry
        self._beside = beside

    @property
    def roles(self) -> dict[str, Role | None]:
        """What a caller of each path needs: any known one may."""
        return dict.fromkeys((PATH, *self._names))

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        app.add_api_route(PATH, self.models, summary="The names to ask for", tags=["OpenAI's API"])
        for path in self._names:
            app.add_api_route(path, self.models, include_in_schema=False)

    async def models(self, request: Request) -> Response:
        """All names, or the one of the path."""
        name = self._names.get(request.scope["path"])
        try:
            if name is not None:
                return JSONResponse(self._entry(name))
            listed = models_reply(map(self._entry, self._names.values()))
            return JSONResponse({**listed, **self._beside})
        except ServiceError as error:
            status = describe(error)
            return JSONResponse(openai_error(status), status.http_code, status.http_headers())
