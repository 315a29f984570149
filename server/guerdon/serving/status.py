"""The one place where domain errors become gRPC status codes and HTTP answers.

The mapping to HTTP follows google/rpc/code.proto. Details travel as `google.rpc.Status` in the
trailer `grpc-status-details-bin`, as the gRPC guide "Error handling, richer error model" lays down.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from guerdon.serving import errors

logger = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Status text and details travel in HTTP/2 trailers, which clients limit to 8 KiB.
_MAX_TEXT = 1000

_CODES: tuple[tuple[type[errors.ServiceError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unsupported, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.CheckpointRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Outdated, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.UpdateRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Interrupted, grpc.StatusCode.ABORTED),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlinePassed, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.ComputeFailed, grpc.StatusCode.INTERNAL),
)

HTTP_CODES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.INTERNAL: 500,
}


@dataclass(frozen=True, kw_only=True)
class ErrorStatus:
    """What a caller is told of an error."""

    code: grpc.StatusCode
    message: str
    field: str = ""
    """Path of the field at fault, for INVALID_ARGUMENT."""
    retry_after: float | None = None
    """Seconds until a retry makes sense, for overload."""

    @property
    def http_code(self) -> int:
        """The HTTP status code."""
        return HTTP_CODES[self.code]

    def to_proto(self) -> status_pb2.Status:
        """A `google.rpc.Status` with its details."""
        status = status_pb2.Status(
            code=getattr(code_pb2, self.code.name), message=_clip(self.message)
        )
        for detail in self._details():
            status.details.add().Pack(detail)
        return status

    def _details(self) -> list[Message]:
        if self.field:
            reason = self.message.removeprefix(f"{self.field}: ")
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_clip(self.field), description=_clip(reason)
            )
            return [error_details_pb2.BadRequest(field_violations=[violation])]
        if self.retry_after is not None:
            delay = Duration()
            delay.FromMicroseconds(max(1, int(self.retry_after * 1e6)))
            return [error_details_pb2.RetryInfo(retry_delay=delay)]
        return []

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """The details, and when gRPC's own retries, where a client has them on, come back."""
        proto = self.to_proto()
        found: list[tuple[str, str | bytes]] = []
        if proto.details:
            found.append((DETAILS_KEY, proto.SerializeToString()))
        if self.retry_after is not None:
            found.append((PUSHBACK_KEY, str(math.ceil(1000 * self.retry_after))))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The body of an HTTP answer."""
        error: dict[str, Any] = {"code": self.code.name, "message": _clip(self.message)}
        if self.field:
            error["field"] = _clip(self.field)
        if self.retry_after is not None:
            error["retry_after"] = self.retry_after
        return {"error": error}

    def http_headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, `WWW-Authenticate` where a token is wanted."""
        if self.retry_after is not None:
            return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.code is grpc.StatusCode.UNAUTHENTICATED:
            return {"WWW-Authenticate": "Bearer"}
        return {}


def describe(error: BaseException) -> ErrorStatus:
    """What to tell the caller of an error.

    An error that is not a `ServiceError` is ours: it is logged whole under a
    short id, and the caller learns nothing but the id.
    """
    if isinstance(error, errors.ServiceError):
        return ErrorStatus(
            code=status_code(error),
            message=_clip(str(error)),
            field=(error.field or "request") if isinstance(error, errors.InvalidRequest) else "",
            retry_after=error.retry_after if isinstance(error, errors.Overloaded) else None,
        )
    if isinstance(error, asyncio.CancelledError):
        return ErrorStatus(code=grpc.StatusCode.CANCELLED, message="the call was cancelled")
    incident = secrets.token_hex(4)
    logger.error("internal error %s", incident, exc_info=error)
    return ErrorStatus(
        code=grpc.StatusCode.INTERNAL,
        message=f"internal error; the server's log has it under {incident}",
    )


def status_code(error: BaseException) -> grpc.StatusCode:
    """The status code for an error; INTERNAL for one that is ours."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: ErrorStatus) -> Never:
    """End a call with a status and its details."""
    await context.abort(status.code, _clip(status.message), status.trailers())


def _clip(text: str) -> str:
    """Short enough for a trailer, and valid UTF-8 whatever the caller sent."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
