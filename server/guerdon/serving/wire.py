"""gRPC handlers that take raw bytes, so that garbage is the caller's error and not ours.

grpc answers a message that cannot be parsed with INTERNAL "Exception deserializing
request". Here a method gets the bytes and calls `decode`, which raises
`InvalidRequest` with the field where it can be told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from guerdon.serving import status
from guerdon.serving.callers import Callers, Role, current_caller, set_caller
from guerdon.serving.deadlines import MAX_TIMEOUT
from guerdon.serving.door import Door, authorization_of, guarded
from guerdon.serving.errors import InvalidRequest

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[bytes, Message]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def decode(kind: type[M], data: bytes) -> M:
    """Parse a message.

    Raises:
        InvalidRequest: the bytes are not such a message; names the field whose
            text is not UTF-8.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        pass
    field = _find_bad_text(kind.DESCRIPTOR, data)
    if field:
        raise InvalidRequest(field, "is not valid UTF-8")
    raise InvalidRequest("request", f"the bytes are not a {kind.DESCRIPTOR.full_name} message")


def deadline_of(context: Context) -> float | None:
    """The call's deadline on `time.monotonic`'s clock; None when it has none.

    gRPC takes timeouts of up to 99,999,999 hours: one beyond `MAX_TIMEOUT` is cut to it.
    """
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + min(remaining, MAX_TIMEOUT)


def generic_handler(
    service: ServiceDescriptor,
    implementation: object,
    door: Door,
    roles: Mapping[str, Role | None],
) -> grpc.GenericRpcHandler:
    """A handler for every method of a service.

    `implementation` has a coroutine method of each RPC's name. One whose request is a
    single message takes its bytes and the context; one whose requests are a stream takes
    the context alone and reads bytes from it. One whose reply is a single message returns
    it; one whose replies are a stream writes messages to the context.

    Args:
        door: refuses calls from their headers alone.
        roles: what each method needs; None for what any known caller may do.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        function = getattr(implementation, method.name)
        check = partial(_identify, door.callers, roles[method.name])
        guard = _guard_requests if method.client_streaming else _guard_request
        make = _HANDLERS[method.client_streaming, method.server_streaming]
        handlers[method.name] = make(guard(function, door, check), None, _serialize)
    return guarded(grpc.method_handlers_generic_handler(service.full_name, handlers), door, roles)


_HANDLERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _identify(callers: Callers, role: Role | None, context: Context) -> None:
    """Note who calls.

    Raises:
        Unauthenticated, PermissionDenied: the call may not go on.
    """
    given = authorization_of(context.invocation_metadata())
    set_caller(callers.identify(given, context.peer(), role))


def _guard_request(
    function: Callable[[bytes, Context], Awaitable[Any]],
    door: Door,
    check: Callable[[Context], None],
) -> Any:
    async def call(data: bytes, context: Context) -> Any:
        try:
            with door.serving():
                check(context)
                with door.sharing(current_caller()):
                    return await function(data, context)
        except Exception as error:
            await status.abort(context, status.describe(error))

    return call


def _guard_requests(
    function: Callable[[Context], Awaitable[Any]],
    door: Door,
    check: Callable[[Context], None],
) -> Any:
    async def call(_requests: object, context: Context) -> Any:
        try:
            with door.serving():
                check(context)
                with door.sharing(current_caller()):
                    return await function(context)
        except Exception as error:
            await status.abort(context, status.describe(error))

    return call


def _find_bad_text(message: Any, data: bytes) -> str:
    """Path of the first string field that is not UTF-8; empty if there is none to be found."""
    counts: dict[str, int] = {}
    try:
        for number, chunk in _length_delimited(data):
            field = message.fields_by_number.get(number)
            if field is None:
                continue
            name: str = field.name
            if field.is_repeated:
                name = f"{name}[{counts.setdefault(name, 0)}]"
                counts[field.name] += 1
            if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(chunk):
                return name
            if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
                inner: str = _find_bad_text(field.message_type, chunk)
                if inner:
                    return f"{name}.{inner}"
    except (IndexError, ValueError):
        pass  # the bytes are not a message at all
    return ""


def _is_utf8(chunk: bytes) -> bool:
    try:
        chunk.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _length_delimited(data: bytes) -> list[tuple[int, bytes]]:
    """Field numbers and contents of the length-delimited fields of a message."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field goes past the end")
            found.append((tag >> 3, data[at : at + size]))
            at += size
        else:
            raise ValueError("groups are not used")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is too long")
