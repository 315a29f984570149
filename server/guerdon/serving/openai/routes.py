"""The routes of OpenAI's API: bodies read, streams primed, errors told as its clients read them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.serving.calls import C, CallTracker
from guerdon.serving.errors import Cancelled, InvalidRequest
from guerdon.serving.http.bodies import method_name
from guerdon.serving.http.foreign import read_body
from guerdon.serving.http.routes import Threads, parse_json, while_connected
from guerdon.serving.openai.bodies import SamplingBody, check_neutral
from guerdon.serving.openai.errors import openai_error
from guerdon.serving.openai.events import DONE, EventStream, event
from guerdon.serving.status import describe

B = TypeVar("B", bound=SamplingBody)


class Endpoint(ABC, Generic[C, B]):
    """What answers the requests of one path."""

    path: ClassVar[str]
    body: type[B]
    summary: ClassVar[str]

    def read(self, value: dict[str, Any], _request: Request) -> B:
        """A body's JSON as its model.

        Raises:
            InvalidRequest: names the first field at fault.
        """
        check_neutral(value)
        return read_body(self.body, value)

    @abstractmethod
    async def answer(self, call: C, body: B) -> Response:
        """The whole answer."""

    @abstractmethod
    def stream(self, call: C, body: B) -> AsyncGenerator[bytes, None]:
        """The answer's events, without the last one."""

    def stream_headers(self, _body: B) -> Mapping[str, str]:
        """Headers of a stream, which go before all that is found out while it lasts."""
        return {}

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error with the request's own name of its field."""
        return error


class OpenAIRoutes(Generic[C]):
    """Serves OpenAI's endpoints.

    Args:
        threads: parse large bodies.
        endpoints: a path each.
    """

    def __init__(
        self, calls: CallTracker[C], threads: Threads, *endpoints: Endpoint[C, Any]
    ) -> None:
        self._calls = calls
        self._threads = threads
        self._endpoints = {endpoint.path: endpoint for endpoint in endpoints}

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        for path, endpoint in self._endpoints.items():
            app.add_api_route(
                path, self.serve, methods=["POST"], summary=endpoint.summary, tags=["OpenAI's API"]
            )

    async def serve(self, request: Request) -> Response:
        """Answer a request, in OpenAI's way also where it fails."""
        endpoint = self._endpoints[request.scope["path"]]
        try:
            body = await self._read(request, endpoint)
            if not body.stream:
                with self._calls.serve(*self._method(request, body)) as call:
                    return await while_connected(request, endpoint.answer(call, body))
            events = self._events(request, endpoint, body)
            # Until the first event an error is still a status code.
            first = await while_connected(request, anext(events))
            return EventStream(first, events, endpoint.stream_headers(body))
        except Exception as error:
            return self._failed(endpoint, error)

    async def _read(self, request: Request, endpoint: Endpoint[C, B]) -> B:
        data, kind = await request.body(), request.headers.get("content-type", "")

        def read() -> B:
            value = parse_json(data, kind)
            if not isinstance(value, dict):
                raise InvalidRequest("body", "must be a JSON object")
            return endpoint.read(value, request)

        try:
            return await self._threads.off_loop(len(data), read)
        except InvalidRequest:
            with self._calls.track(method_name(request.url.path), None):  # which counts it
                raise

    async def _events(
        self, request: Request, endpoint: Endpoint[C, B], body: B
    ) -> AsyncGenerator[bytes, None]:
        begun = False
        try:
            with self._calls.serve(*self._method(request, body)) as call:
                async with aclosing(endpoint.stream(call, body)) as events:
                    async for piece in events:
                        begun = True
                        try:
                            yield piece
                        except GeneratorExit:
                            raise Cancelled("the caller has left") from None
        except Cancelled:
            return
        except Exception as error:
            if not begun:
                raise
            yield event(self._body(endpoint, error)[0])
            return
        yield DONE

    def _method(self, request: Request, body: SamplingBody) -> tuple[str, float | None]:
        deadline = None if body.timeout is None else time.monotonic() + body.timeout
        return method_name(request.url.path), deadline

    def _failed(self, endpoint: Endpoint[C, Any], error: Exception) -> Response:
        body, code, headers = self._body(endpoint, error)
        return JSONResponse(body, code, headers)

    def _body(
        self, endpoint: Endpoint[C, Any], error: Exception
    ) -> tuple[dict[str, Any], int, dict[str, str]]:
        if isinstance(error, InvalidRequest):
            error = endpoint.renamed(error)
        status = describe(error)
        return openai_error(status), status.http_code, status.http_headers()
