"""The header `x-request-id`: echoed, and noted for the access log."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guerdon.serving.access import audit

HEADER = "x-request-id"
_MAX_CHARACTERS = 200


class RequestIds:
    """ASGI middleware: answers a request under the id that it came with."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its answer bears its id, if it has one that can be shown."""
        given = Headers(scope=scope).get(HEADER, "") if scope["type"] == "http" else ""
        if not given or len(given) > _MAX_CHARACTERS or not given.isprintable():
            await self._app(scope, receive, send)
            return
        audit.note_request_id(given)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = given
            await send(message)

        await self._app(scope, receive, answer)
