"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

import grpc

from guerdon.serving.status import ErrorStatus


def openai_error(status: ErrorStatus, code: int | None = None) -> dict[str, Any]:
    """The body of an error.

    Args:
        code: of HTTP, where it is not the status's own.
    """
    error = {
        "message": status.message,
        "type": _TYPES.get(status.code, "InternalServerError"),
        "param": status.field or None,
        "code": status.http_code if code is None else code,
    }
    return {"error": error}


_TYPES = {
    grpc.StatusCode.INVALID_ARGUMENT: "BadRequestError",
    grpc.StatusCode.FAILED_PRECONDITION: "BadRequestError",
    grpc.StatusCode.NOT_FOUND: "NotFoundError",
    grpc.StatusCode.PERMISSION_DENIED: "PermissionDeniedError",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RateLimitError",
    grpc.StatusCode.UNAVAILABLE: "ServiceUnavailableError",
}
