"""The routes of a service under `/v1`: their JSON bodies parsed off the event loop.

JSON can hold the event loop up, which gRPC and the health checks share.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from guerdon.serving.calls import C, CallTracker
from guerdon.serving.errors import Cancelled, InvalidRequest
from guerdon.serving.http.bodies import method_name
from guerdon.serving.http.schemas import ERRORS

B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")

MAX_PARTS = 100_000
"""Most lists and objects in a body: each takes a hundred times the memory of its brackets."""
MAX_KEYS = 256
"""Most keys of an object, such as the arguments of a tool: each unknown one makes an error."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)


class Threads(Protocol):
    """The threads in which large bodies are parsed."""

    async def off_loop(self, size: int, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Call a function here if its input is small, in a thread if it is `size` bytes large."""


class Foreign(Protocol):
    """Serves the requests of another system that come to the paths of these routes."""

    def reads(self, path: str, value: Any) -> bool:
        """Whether a body's JSON is such a request's."""
        ...

    async def serve(self, request: Request) -> Response:
        """Answer such a request, whatever becomes of it."""
        ...


class Routes(Generic[C]):
    """Routes that take and give JSON, and whose calls are counted.

    Args:
        check: bounds how much parsed JSON holds, before a model looks at each part.
        foreign: what serves bodies that are not for these routes.
    """

    def __init__(
        self,
        tag: str,
        calls: CallTracker[C],
        threads: Threads,
        check: Callable[[Any], None],
        foreign: Foreign | None = None,
    ) -> None:
        self._calls = calls
        self._threads = threads
        self._check = check
        self._foreign = foreign
        self._router = APIRouter(prefix="/v1", tags=[tag], route_class=self._route_class())

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app."""
        app.include_router(self._router)

    def post(
        self,
        endpoint: Callable[..., Any],
        reply: type[BaseModel],
        summary: str,
        errors: Mapping[int | str, dict[str, Any]] = ERRORS,
    ) -> None:
        """Add a route that does work, at the endpoint's name."""
        self._add("POST", endpoint, reply, summary, errors)

    def get(self, endpoint: Callable[..., Any], reply: type[BaseModel], summary: str) -> None:
        """Add a route that tells something, at the endpoint's name."""
        self._add("GET", endpoint, reply, summary, {code: ERRORS[code] for code in (401, 503)})

    def _add(
        self,
        method: str,
        endpoint: Callable[..., Any],
        reply: type[BaseModel],
        summary: str,
        errors: Mapping[int | str, dict[str, Any]],
    ) -> None:
        self._router.add_api_route(
            f"/{endpoint.__name__}",
            endpoint,
            methods=[method],
            response_model=reply,
            summary=summary,
            responses=dict(errors),
        )

    def serve(self, request: Request, timeout: float | None = None) -> AbstractContextManager[C]:
        """Follow the call of a request, and hold the server open while it is served."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._calls.serve(method_name(request.url.path), deadline)

    def _route_class(self) -> type[APIRoute]:
        """A class of routes whose bodies `_parse` parses.

        FastAPI describes such a route as any other, and would parse on the event loop.
        """
        parse, foreign = self._parse, self._foreign

        class BodyRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Any]:
                if self.body_field is None:
                    return super().get_route_handler()
                model, endpoint = self.body_field.field_info.annotation, self.endpoint

                async def handle(request: Request) -> Response:
                    body = await parse(request, model)
                    if body is None:
                        assert foreign is not None, "else every body is ours"
                        return await foreign.serve(request)
                    response: Response = await endpoint(request, body)
                    return response

                return handle

        return BodyRoute

    async def _parse(self, request: Request, kind: Any) -> BaseModel | None:
        """The body of a request, parsed in a thread if it is large; faults are counted.

        None for one that is not for these routes.
        """
        data, content_type = await request.body(), request.headers.get("content-type", "")
        path = request.url.path
        try:
            return await self._threads.off_loop(
                len(data), self._read, path, kind, data, content_type
            )
        except InvalidRequest:
            with self._calls.track(method_name(path), None):
                raise

    def _read(
        self, path: str, kind: type[BaseModel], data: bytes, content_type: str
    ) -> BaseModel | None:
        value = parse_json(data, content_type)
        if self._foreign is not None and self._foreign.reads(path, value):
            return None
        self._check(value)
        return validated(kind, value)


def json_reply(body: BaseModel) -> Response:
    """The answer of a call, without the fields that it leaves empty."""
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")


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


def parse_json(data: bytes, content_type: str) -> Any:
    """A body's JSON, if it holds no more parts than it may.

    Args:

    Raises:
        InvalidRequest: it is no such JSON.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not re.fullmatch(r"application/[\w.+-]+\+json", media):
        raise InvalidRequest("body", "must be JSON, with the content-type application/json")
    if not data:
        raise InvalidRequest("body", "is required")
    _check_parts(data)
    try:
        value: Any = json.loads(data, object_hook=_check_keys)
    except json.JSONDecodeError as error:
        raise InvalidRequest("body", f"is not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number without end, too deep
        raise InvalidRequest("body", "cannot be parsed as JSON") from error
    return value


def validated(kind: type[B], value: Any) -> B:
    """Parsed JSON as its model.

    Raises:
        InvalidRequest: names the first field at fault.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _first_fault(error) from None


def _check_parts(data: bytes) -> None:
    """Refuse a body with too many lists and objects; brackets in strings are text."""
    if data.count(b"[") + data.count(b"{") > MAX_PARTS:
        data = _STRING.sub(b"", data)
        if data.count(b"[") + data.count(b"{") > MAX_PARTS:
            raise InvalidRequest("body", f"holds more than {MAX_PARTS} lists and objects")


def _check_keys(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > MAX_KEYS:
        raise InvalidRequest("body", f"has an object with more than {MAX_KEYS} fields")
    return value


def _first_fault(error: ValidationError) -> InvalidRequest:
    """The first fault that pydantic found, as the path of a field and a sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    reasons = {"extra_forbidden": "is not a known field", "missing": "is required"}
    message = str(first["msg"]).removeprefix("Value error, ")
    reason = reasons.get(first["type"], message[:1].lower() + message[1:])
    return InvalidRequest(_path(first["loc"]), reason)


def _path(location: tuple[int | str, ...]) -> str:
    """`("items", 0, "prompt", "@text")` as `items[0].prompt`.

    Parts that begin with @ are tags of unions, no fields.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("@"):
            path += f".{part}" if path else part
    return path or "body"
