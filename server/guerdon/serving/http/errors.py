"""Answers to requests that fail before a route has them, or where none is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from guerdon.serving.errors import InvalidRequest
from guerdon.serving.status import ErrorStatus, describe

ErrorBody = Callable[[str, ErrorStatus, int], dict[str, Any]]
"""The JSON of an error, by the path that was asked for, what is told, and the HTTP code."""

_CODES = {404: grpc.StatusCode.NOT_FOUND, 405: grpc.StatusCode.UNIMPLEMENTED}
"""What starlette's errors are as gRPC has them."""


def native_error(_path: str, status: ErrorStatus, _code: int) -> dict[str, Any]:
    """An error as Guerdon's own routes tell it."""
    return status.to_json()


class ErrorReplies:
    """Makes the answers for errors that no route tells.

    Args:
        body: their JSON, which may depend on the path.
    """

    def __init__(self, body: ErrorBody = native_error) -> None:
        self._body = body

    def reply(
        self,
        path: str,
        status: ErrorStatus,
        code: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        """The answer for an error.

        Args:
            path: that was asked for.
            code: of HTTP, where it is not the status's own.
            headers: beside the status's own.
        """
        http_code = status.http_code if code is None else code
        given = {**status.http_headers(), **(headers or {})}
        return JSONResponse(self._body(path, status, http_code), http_code, given)

    async def on_error(self, request: Request, error: Exception) -> JSONResponse:
        """Answer for an error that no route has caught."""
        return self.reply(request.scope["path"], describe(error))

    async def on_http_exception(self, request: Request, error: Exception) -> JSONResponse:
        """Answer for an error of starlette's or FastAPI's."""
        assert isinstance(error, HTTPException)
        if error.status_code == 400:  # FastAPI's: not UTF-8, nested too deeply, …
            return await self.on_error(request, InvalidRequest("body", "cannot be parsed as JSON"))
        code = _CODES.get(error.status_code, grpc.StatusCode.UNKNOWN)
        status = ErrorStatus(code=code, message=str(error.detail))
        return self.reply(request.scope["path"], status, error.status_code, error.headers)
