"""HTTP requests before a route sees them: who may come in, and how bodies are read.

A request is refused from its headers alone, before its body is read. Bodies are bounded in
size, in time, and all together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guerdon.serving.access import audit
from guerdon.serving.access.door import Door
from guerdon.serving.access.identity import Role, set_caller
from guerdon.serving.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
)
from guerdon.serving.http.errors import ErrorReplies
from guerdon.serving.status import ErrorStatus, describe

BODY_SECONDS = 60.0
"""Seconds that a whole body may take."""
DISCARD_SECONDS = 10.0
"""Seconds in which a refused caller's bytes are read: closing on a sender resets the answer."""
DISCARD_PAUSE = 0.05
"""Seconds between two reads of them: strangers who send all they can get little of the loop."""
HELD_BODIES = 16
"""Bodies of the largest size that are in memory at a time; beyond, requests are shed."""


def method_name(path: str) -> str:
    """What metrics and logs call the method of a path."""
    _, native, name = path.rpartition("/v1/")
    return "http_" + (name.replace("/", "_") if native else path.rpartition("/")[2])


class Bodies:
    """ASGI middleware: refuses requests from their headers, and reads the bodies of the others.

    Args:
        roles: what each path that takes calls needs; None for what any known caller may do.
            Other paths are open, and take no body.
        max_body: most bytes of a body.
        errors: make the answers to refused requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        roles: Mapping[str, Role | None],
        max_body: int,
        errors: ErrorReplies,
    ) -> None:
        self._app = app
        self._door = door
        self._roles = roles
        self._max_body = max_body
        self._errors = errors
        self._held = 0
        """Bytes of bodies in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body read, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._hold)
        path = scope["path"]
        try:
            self._enter(scope, body.headers)
            await body.read(self._max_body if path in self._roles else 0)
        except _TooLarge as error:
            status = ErrorStatus(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message=str(error))
            refusal = self._errors.reply(path, status, 413)
        except TimeoutError:
            late = f"no whole body in {BODY_SECONDS:g} s"
            status = ErrorStatus(code=grpc.StatusCode.DEADLINE_EXCEEDED, message=late)
            refusal = self._errors.reply(path, status, 408)
        except _Left:
            self._held -= body.size
            return
        except ServiceError as error:
            status = describe(error)
            method = method_name(path)
            self._door.refused.labels(method, status.code.name).inc()
            if isinstance(error, Unauthenticated | PermissionDenied):
                audit.refused(method, (scope.get("client") or ("",))[0], status.code.name)
            refusal = self._errors.reply(path, status)
        else:
            try:
                await self._app(scope, body.replay(), send)
            finally:
                self._held -= body.size
            return
        self._held -= body.size
        body.forget()
        await self._refuse(refusal, body, send)

    async def _refuse(self, refusal: JSONResponse, body: _Body, send: Send) -> None:
        """Answer at once, and end the answer when the caller has stopped to send."""
        refusal.headers["connection"] = "close"
        headers = refusal.raw_headers
        await send(
            {"type": "http.response.start", "status": refusal.status_code, "headers": headers}
        )
        await send({"type": "http.response.body", "body": refusal.body, "more_body": True})
        await body.discard(self._max_body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _enter(self, scope: Scope, headers: Headers) -> None:
        """Note who calls.

        Raises:
            Unauthenticated, PermissionDenied: the request may not go on.
            InvalidRequest: it has two lengths, of which a proxy may have taken the other.
        """
        if "content-length" in headers and "transfer-encoding" in headers:
            raise InvalidRequest("body", "has both a Content-Length and a Transfer-Encoding")
        path = scope["path"]
        if not path.isprintable():  # routes match paths that end in a newline, too
            raise NotFound("nothing is served at such a path")
        if path in self._roles:
            peer = scope["client"][0] if scope.get("client") else ""
            role = self._roles[path]
            set_caller(self._door.callers.identify(headers.get("authorization"), peer, role))

    def _hold(self, size: int) -> None:
        """Count bytes of a body.

        Raises:
            Overloaded: all bodies together are too large.
        """
        if self._held + size > HELD_BODIES * self._max_body:
            raise Overloaded("too many bodies are being read", retry_after=1.0)
        self._held += size


class _TooLarge(Exception):
    """A body is larger than its path takes."""


class _Left(Exception):
    """The caller left before its body had come."""


class _Body:
    """The body of one request."""

    def __init__(self, receive: Receive, headers: Headers, hold: Callable[[int], None]) -> None:
        self.headers = headers
        self.size = 0
        """Bytes held."""
        self._receive = receive
        self._hold = hold
        self._messages: list[Message] = []
        self._ended = False

    async def read(self, limit: int) -> None:
        """Read it whole.

        Raises:
            _TooLarge, _Left, Overloaded, TimeoutError: why it was not.
        """
        announced = self.headers.get("content-length", "0")
        too_large = _TooLarge(
            f"the body is larger than the limit of {limit} bytes"
            if limit
            else "nothing at this path takes a body"
        )
        if not announced.isdigit() or int(announced) > limit:
            raise too_large
        async with asyncio.timeout(BODY_SECONDS):
            while not self._ended:
                message = await self._next()
                if message["type"] == "http.disconnect":
                    raise _Left
                size = len(message.get("body", b""))
                if self.size + size > limit:
                    raise too_large
                self._hold(size)
                self.size += size
                self._messages.append(message)

    async def discard(self, limit: int) -> None:
        """Read on for a while and keep nothing, where the caller sends without being asked."""
        if self.headers.get("expect", "").lower() == "100-continue":
            return
        size = 0
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._ended and size <= 4 * limit:
                    size += len((await self._next()).get("body", b""))
                    await asyncio.sleep(DISCARD_PAUSE)
        except TimeoutError:
            pass

    def forget(self) -> None:
        """Drop what was read."""
        self._messages.clear()

    def replay(self) -> Receive:
        """What was read, and then whatever comes."""
        waiting = iter(self._messages)

        async def replayed() -> Message:
            for message in waiting:
                return message
            return await self._receive()

        return replayed

    async def _next(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message
