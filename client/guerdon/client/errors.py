"""The client's errors, and the one place where gRPC's become ours.

    GuerdonError
     ├─ InvalidArgument      a field is wrong (a ValueError too); raised before sending where the
     │                       client can tell, else as the server says
     ├─ NotFound             no such model
     ├─ FailedPrecondition   the model cannot do what is asked, or a checkpoint was refused
     ├─ Overloaded           the server sheds work, or a message was too large; `retry_after`
     ├─ DeadlineExceeded     no answer in the time allowed (a TimeoutError too)
     ├─ Unavailable          nobody there, the server is starting or draining, or it or something
     │                       on the way ended the call
     ├─ Unauthenticated      no token, or a wrong one
     ├─ PermissionDenied     the token does not allow it
     ├─ Unimplemented        the server does not have this method
     ├─ Cancelled            this client was closed during the call
     ├─ Aborted              something came between; a new call may succeed
     │   └─ MixedRevisions   the parts of one call come from different revisions of the model
     └─ Internal             the computation failed, or the answer cannot be right

Every error has a `code`, a `message` and `details`. A code that is not listed here is a plain
`GuerdonError`.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import unquote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

LONGEST_RETRY_AFTER = 600.0
"""Seconds: the longest time to come back after that a server is believed."""

_DETAILS_KEY = "grpc-status-details-bin"
_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio itself says when the connection goes while a message is being written."""

_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max \((\d+) vs\. (\d+)\)")
_NO_CONNECTION = re.compile(r"(?:ipv[46]|unix):(\S+): Failed to connect to remote host: (.+)", re.S)
"""gRPC's own words, in which the address is quoted as in a URL."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field."""

    field: str
    """Path of the field, such as `items[0].responses[2]`."""
    description: str
    """What is wrong with it."""


class GuerdonError(Exception):
    """Any error of this client.

    Args:
        message: one plain sentence.
        code: the status code.
        details: the server's `google.rpc` details, decoded.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, details: Sequence[Message] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.details = tuple(details)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server says to come back; None if it does not.

        What no server can mean is brought into range: from 0 to `LONGEST_RETRY_AFTER`.
        """
        for detail in self.details:
            if isinstance(detail, error_details_pb2.RetryInfo):
                delay: Duration = detail.retry_delay
                seconds = delay.seconds + delay.nanos / 1e9
                return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
        return None


class InvalidArgument(GuerdonError, ValueError):
    """A field is wrong; `field_violations` names it."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The fields at fault."""
        return tuple(
            FieldViolation(violation.field, violation.description)
            for detail in self.details
            if isinstance(detail, error_details_pb2.BadRequest)
            for violation in detail.field_violations
        )


class NotFound(GuerdonError):
    """No model of that name or revision."""

    default_code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(GuerdonError):
    """The model cannot do what is asked, or a checkpoint was refused."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(GuerdonError):
    """The server sheds work. Without `retry_after` the message itself was too large."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(GuerdonError, TimeoutError):
    """No answer in the time allowed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(GuerdonError):
    """Nobody there, the server is starting or draining, or it or something between ended the call.

    A status of CANCELLED that came over the network is one too: the caller did not ask for it.
    """

    default_code = grpc.StatusCode.UNAVAILABLE


class Unauthenticated(GuerdonError):
    """No token, or a wrong one."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(GuerdonError):
    """The token does not allow it."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(GuerdonError):
    """The server does not have this method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Cancelled(GuerdonError):
    """The client was closed during the call.

    Cancelling a task raises `asyncio.CancelledError` as ever.
    """

    default_code = grpc.StatusCode.CANCELLED


class Aborted(GuerdonError):
    """Something else came between, such as another weight update; a new call may succeed."""

    default_code = grpc.StatusCode.ABORTED


class MixedRevisions(Aborted):
    """The parts of one call were scored by different revisions, and none could score them all."""

    default_code = grpc.StatusCode.ABORTED


class Internal(GuerdonError):
    """The computation failed, or the answer cannot be right."""

    default_code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[GuerdonError]] = {
    kind.default_code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        Overloaded,
        DeadlineExceeded,
        Unavailable,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        Aborted,
        Internal,
    )
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_DETAIL_TYPES: tuple[type[Message], ...] = (
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.ErrorInfo,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.DebugInfo,
    error_details_pb2.Help,
    error_details_pb2.LocalizedMessage,
    error_details_pb2.RequestInfo,
)


def invalid(field: str, description: str) -> InvalidArgument:
    """The error for a field that the client itself finds wrong."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    return InvalidArgument(f"{field}: {description}", details=[detail])


def from_status(status: status_pb2.Status) -> GuerdonError:
    """The error that a `google.rpc.Status` tells of."""
    return _make(_CODES.get(status.code), status.message, _unpack(status))


class ServerStatus:
    """Keeps the status with which a server ends a streaming call.

    A write that fails because the call has just ended makes grpc.aio put `INTERNAL: Internal error
    from Core` in its place, before or after it (https://github.com/grpc/grpc/issues/36066).

    Args:
        call: one that has just been made.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self._error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep)

    def _keep(self, call: Any) -> None:
        """Called for each status that the call is given."""
        code, details = _result(call.code()), _result(call.details())
        if not _write_failed(code, details):
            trailing = _result(call.trailing_metadata())
            self._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)

    def error(self, raised: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What the server said, or else what the call raised."""
        return self._error or raised


def _write_failed(code: grpc.StatusCode, details: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and details == _WRITE_FAILED


def _result(finished: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        finished.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the call has not ended")


def from_rpc_error(error: grpc.aio.AioRpcError) -> GuerdonError:
    """The error that a failed call tells of; raise it `from` the original."""
    if _write_failed(error.code(), error.details()):
        # grpc.aio's own words. Nothing was computed wrongly.
        return Unavailable("the connection broke while a message was being sent")
    message = error.details() or ""
    if (found := _NO_CONNECTION.search(message)) is not None:
        message = f"cannot connect to {unquote(found[1])}: {found[2]}"
    elif (found := _TOO_LARGE.search(message)) is not None:
        message = f"the reply has {found[1]} bytes, Limits(max_reply_bytes=…) is {found[2]}"
    return _make(error.code(), message, _trailing_details(error))


def _make(code: grpc.StatusCode | None, message: str, details: list[Message]) -> GuerdonError:
    code = code or grpc.StatusCode.UNKNOWN
    if code is grpc.StatusCode.CANCELLED:
        # Our own leaving is a `CancelledError`: this is a server that stops, or a proxy.
        return Unavailable(f"the server ended the call: {message or 'CANCELLED'}", details=details)
    kind = _BY_CODE.get(code, GuerdonError)
    return kind(message or code.value[1], code=code, details=details)


def _trailing_details(error: grpc.aio.AioRpcError) -> list[Message]:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY:
            try:
                return _unpack(status_pb2.Status.FromString(value))
            except DecodeError:
                return []  # a proxy's own idea of the key: the code and text still tell
    return []


def _unpack(status: status_pb2.Status) -> list[Message]:
    """The details of known types; others are left out, as their types are not here."""
    found: list[Message] = []
    for packed in status.details:
        for kind in _DETAIL_TYPES:
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                try:
                    packed.Unpack(detail)
                except DecodeError:
                    break
                found.append(detail)
                break
    return found
