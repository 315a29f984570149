"""The HTTP side of a service: FastAPI on the service's own event loop.

Every service gets `/healthz`, `/readyz`, `/metrics`, `/openapi.json` and `/docs`
(a page without any foreign asset, so that it works without a network).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guerdon.serving.access import audit
from guerdon.serving.access.door import Door
from guerdon.serving.access.identity import Role
from guerdon.serving.errors import ServiceError
from guerdon.serving.http.bodies import Bodies
from guerdon.serving.http.errors import ErrorBody, ErrorReplies
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.metrics import exposition

_DOCS_PAGE = Path(__file__).with_name("docs.html")
_REQUEST_ID = "x-request-id"
_LONGEST_ID = 200
"""Characters of an id that is echoed."""


def new_app(
    title: str,
    version: str,
    lifecycle: Lifecycle,
    registry: CollectorRegistry | None,
    *,
    door: Door,
    roles: Mapping[str, Role | None],
    max_body: int,
    error_body: ErrorBody,
) -> FastAPI:
    """An app with the common routes and JSON errors; a service adds its own.

    Args:
        registry: of the metrics; None where they have a port of their own.
        roles: what each path that takes calls needs; None for what any known caller may do.
        max_body: largest request body in bytes.
        error_body: the JSON of errors that no route tells.
    """
    errors = ErrorReplies(error_body)
    app = _App(title=title, version=version, docs_url=None, redoc_url=None)
    app.add_middleware(Bodies, door=door, roles=roles, max_body=max_body, errors=errors)
    app.add_middleware(RequestIds)
    app.add_exception_handler(HTTPException, errors.on_http_exception)
    app.add_exception_handler(ServiceError, errors.on_error)
    app.add_exception_handler(Exception, errors.on_error)
    _add_probes(app, lifecycle)
    if registry is not None:
        _add_metrics(app, registry)

    @app.get("/version", summary="The server's version", tags=["operations"])
    def show_version() -> dict[str, str]:
        return {"version": version}

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS_PAGE.read_text(encoding="utf-8"))

    return app


def new_operations_app(lifecycle: Lifecycle, registry: CollectorRegistry, door: Door) -> FastAPI:
    """An app with the probes and the metrics alone."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(Bodies, door=door, roles={}, max_body=0, errors=ErrorReplies())
    _add_probes(app, lifecycle)
    _add_metrics(app, registry)
    return app


def _add_metrics(app: FastAPI, registry: CollectorRegistry) -> None:
    @app.get(
        "/metrics",
        summary="Metrics as Prometheus text",
        tags=["operations"],
        response_class=PlainTextResponse,
    )
    def metrics() -> Response:
        body, content_type = exposition(registry)
        return Response(body, headers={"content-type": content_type})


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The description without FastAPI's own 422: a wrong field is 400 here."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for methods in schema["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(name, None)
        return super().openapi()


def _add_probes(app: FastAPI, lifecycle: Lifecycle) -> None:
    @app.get(
        "/healthz",
        summary="Whether the process lives",
        tags=["operations"],
        response_class=PlainTextResponse,
    )
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def readyz() -> PlainTextResponse:
        return PlainTextResponse(
            f"{lifecycle.phase.value}\n", status_code=200 if lifecycle.ready else 503
        )

    for path in ("/readyz", "/health", "/ping"):  # the latter as other systems name it
        app.add_api_route(
            path,
            readyz,
            summary="Whether it takes work",
            tags=["operations"],
            response_class=PlainTextResponse,
            responses={503: {"description": "Starting or draining."}},
        )


class RequestIds:
    """ASGI middleware: echoes `x-request-id`, and notes it for the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its answer bears its id, if it has one that can be shown."""
        given = Headers(scope=scope).get(_REQUEST_ID, "") if scope["type"] == "http" else ""
        if not given or len(given) > _LONGEST_ID or not given.isprintable():
            await self._app(scope, receive, send)
            return
        audit.note_request_id(given)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_REQUEST_ID] = given
            await send(message)

        await self._app(scope, receive, answer)
