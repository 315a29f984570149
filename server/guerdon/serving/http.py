"""The HTTP side of a service: uvicorn and FastAPI on the service's own event loop.

Every service gets `/healthz`, `/readyz`, `/metrics`, `/openapi.json` and `/docs`
(a page without any foreign asset, so that it works without a network).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guerdon.serving.callers import Callers, Role, set_caller
from guerdon.serving.credentials import TLSFiles
from guerdon.serving.errors import Cancelled, InvalidRequest, ServiceError
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.metrics import exposition
from guerdon.serving.status import describe

R = TypeVar("R")

_DOCS_PAGE = Path(__file__).with_name("docs.html")


def new_app(
    title: str,
    version: str,
    lifecycle: Lifecycle,
    registry: CollectorRegistry | None,
    *,
    max_body: int,
) -> FastAPI:
    """An app with the common routes and JSON errors; a service adds its own.

    Args:
        registry: of the metrics; None where they have a port of their own.
        max_body: largest request body in bytes.
    """
    app = _App(title=title, version=version, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_body=max_body)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ServiceError, _on_error)
    app.add_exception_handler(Exception, _on_error)
    _add_probes(app, lifecycle)
    if registry is not None:
        _add_metrics(app, registry)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS_PAGE.read_text(encoding="utf-8"))

    return app


def new_operations_app(lifecycle: Lifecycle, registry: CollectorRegistry) -> FastAPI:
    """An app with the probes and the metrics alone."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(BodyLimit, max_body=1024)
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

    @app.get(
        "/readyz",
        summary="Whether it takes work",
        tags=["operations"],
        response_class=PlainTextResponse,
        responses={503: {"description": "Starting or draining."}},
    )
    async def readyz() -> PlainTextResponse:
        return PlainTextResponse(
            f"{lifecycle.phase.value}\n", status_code=200 if lifecycle.ready else 503
        )


def error_response(error: BaseException) -> JSONResponse:
    """The JSON answer for an error."""
    status = describe(error)
    return JSONResponse(status.to_json(), status.http_code, headers=status.http_headers())


async def _on_error(_request: Request, error: Exception) -> Response:
    return error_response(error)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(validation_error(error))


def validation_error(error: RequestValidationError) -> InvalidRequest:
    """The first fault that pydantic found, as the path of a field and a sentence."""
    first = error.errors()[0]
    kind = first["type"]
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "cannot be parsed")
        return InvalidRequest("body", f"is not valid JSON: {reason}")
    reasons = {"extra_forbidden": "is not a known field", "missing": "is required"}
    message = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(_path(first["loc"]), reasons.get(kind, message[:1].lower() + message[1:]))


def _path(location: tuple[int | str, ...]) -> str:
    """`("body", "items", 0, "prompt", "@text")` as `items[0].prompt`.

    Parts that begin with @ are tags of unions, no fields.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("@") and (path or part != "body"):
            path += f".{part}" if path else part
    return path or "body"


def needs(callers: Callers, role: Role | None) -> Any:
    """A dependency of a route: the role that its callers need; None for any known caller."""

    async def identify(request: Request) -> None:
        peer = request.client.host if request.client is not None else ""
        set_caller(callers.identify(request.headers.get("authorization"), peer, role))

    return Depends(identify)


async def while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """Do the work of a request whose body is read, unless the caller leaves: that cancels it.

    Raises:
        Cancelled: the caller has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # the body is read: only a disconnect comes
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the caller has left")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's: not UTF-8, nested too deeply, …
        return error_response(InvalidRequest("body", "cannot be parsed as JSON"))
    names = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
    body = {"code": names.get(error.status_code, "UNKNOWN"), "message": str(error.detail)}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)


class BodyLimit:
    """Refuses bodies over a limit, announced or not, before they are held in memory."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body read, or refuse it with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        too_large = not announced.isdigit() or int(announced) > self._max_body
        body = None if too_large else await self._read(receive)
        if body is None:
            await self._refuse(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The body, or None when it is too large."""
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body:
                return None
            if not message.get("more_body", False):
                return messages

    async def _discard(self, receive: Receive) -> None:
        """Read on for a while: closing on a sender would reset the answer with the connection."""
        size = 0
        while size < 16 * self._max_body:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._discard(receive)
        body = {
            "code": "RESOURCE_EXHAUSTED",
            "message": f"the body is larger than the limit of {self._max_body} bytes",
        }
        await JSONResponse({"error": body}, 413, headers={"Connection": "close"})(
            scope, receive, send
        )


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replayed() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replayed


class HTTPServer:
    """uvicorn beside gRPC: it leaves signals and logging alone.

    Args:
        port: 0 picks a free one; `port` is the real one.

    Raises:
        OSError: the port cannot be bound.
    """

    def __init__(self, app: Any, *, host: str, port: int, tls: TLSFiles | None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host.strip("[]"), port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # a caller could name any address as its own
            timeout_graceful_shutdown=1,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
            ssl_cert_reqs=2 if tls and tls.client_ca else 0,  # ssl.CERT_REQUIRED, CERT_NONE
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve in the background; returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended while it started")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Close the port and the connections; answers under way get a second more."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
