"""The routes of OpenAI's API: bodies read, streams primed, errors told as its clients read them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from guerdon.serving.calls import C, CallTracker
from guerdon.serving.errors import Cancelled, InvalidRequest, ServiceError
from guerdon.serving.http.bodies import method_name
from guerdon.serving.http.routes import Threads, parse_json, while_connected
from guerdon.serving.openai.events import DONE, EventStream, event
from guerdon.serving.openai.replies import openai_error
from guerdon.serving.status import describe


class EndpointRequest(Protocol):
    """What a request asks for."""

    @property
    def stream(self) -> bool:
        """Whether the answer is streamed."""

    @property
    def timeout(self) -> float | None:
        """Seconds for the whole call."""


B = TypeVar("B", bound=EndpointRequest)


class Endpoint(ABC, Generic[C, B]):
    """What answers the requests of one path."""

    path: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def read(self, value: dict[str, Any], request: Request) -> B:
        """What a body's JSON asks for; called in a thread where it is large.

        Raises:
            InvalidRequest: names the first field at fault.
        """

    @abstractmethod
    async def answer(self, call: C, body: B) -> Response:
        """The whole answer."""

    @abstractmethod
    def stream(self, call: C, body: B) -> AsyncGenerator[bytes, None]:
        """The answer's events, without the last one."""

    def stream_headers(self, _body: B) -> Mapping[str, str]:
        """Headers of a stream, which go before all that is found out while it lasts."""
        return {}

    def renamed(self, error: InvalidRequest, _asked: B | None = None) -> InvalidRequest:
        """The error with the request's own name of its field.

        Args:
            _asked: what the request asks for, if it could be read.
        """
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
        self._endpoints = endpoints

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        for endpoint in self._endpoints:
            app.add_api_route(
                endpoint.path,
                self._route(endpoint),
                methods=["POST"],
                summary=endpoint.summary,
                tags=["OpenAI's API"],
            )

    def _route(self, endpoint: Endpoint[C, Any]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            return await self._serve(request, endpoint)

        return serve

    async def _serve(self, request: Request, endpoint: Endpoint[C, B]) -> Response:
        """Answer a request, in OpenAI's way also where it fails."""
        asked: B | None = None
        try:
            asked = await self._read(request, endpoint)
            if not asked.stream:
                with self._calls.serve(*self._method(request, asked)) as call:
                    return await while_connected(request, endpoint.answer(call, asked))
            events = self._events(request, endpoint, asked)
            # Until the first event an error is still a status code.
            first = await while_connected(request, anext(events))
            return EventStream(first, events, endpoint.stream_headers(asked))
        except Exception as error:
            body, code, headers = self._told(endpoint, error, asked)
            return JSONResponse(body, code, headers)

    async def _read(self, request: Request, endpoint: Endpoint[C, B]) -> B:
        data, kind = await request.body(), request.headers.get("content-type", "")

        def read() -> B:
            value = parse_json(data, kind)
            if not isinstance(value, dict):
                raise InvalidRequest("body", "must be a JSON object")
            return endpoint.read(value, request)

        try:
            return await self._threads.off_loop(len(data), read)
        except ServiceError:
            with self._calls.track(method_name(request.url.path), None):  # which counts it
                raise

    async def _events(
        self, request: Request, endpoint: Endpoint[C, B], asked: B
    ) -> AsyncGenerator[bytes, None]:
        begun = False
        try:
            with self._calls.serve(*self._method(request, asked)) as call:
                async with aclosing(endpoint.stream(call, asked)) as events:
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
            yield event(self._told(endpoint, error, asked)[0])
            return
        yield DONE

    def _method(self, request: Request, asked: EndpointRequest) -> tuple[str, float | None]:
        deadline = None if asked.timeout is None else time.monotonic() + asked.timeout
        return method_name(request.url.path), deadline

    def _told(
        self, endpoint: Endpoint[C, B], error: Exception, asked: B | None
    ) -> tuple[dict[str, Any], int, dict[str, str]]:
        """The body, HTTP code and headers of an error."""
        if isinstance(error, InvalidRequest):
            error = endpoint.renamed(error, asked)
        status = describe(error)
        return openai_error(status), status.http_code, status.http_headers()
