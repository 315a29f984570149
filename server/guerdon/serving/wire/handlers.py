"""gRPC handlers that take raw bytes, so that garbage is the caller's error and not ours.

grpc answers a message that cannot be parsed with INTERNAL "Exception deserializing
request". Here a method gets the bytes and calls `decode`, which raises
`InvalidRequest` with the field where it can be told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from guerdon.serving import status
from guerdon.serving.access import audit
from guerdon.serving.access.callers import Callers
from guerdon.serving.access.door import Door, authorization_header, guarded
from guerdon.serving.access.identity import Role, current_caller, set_caller
from guerdon.serving.errors import Cancelled, InvalidRequest
from guerdon.serving.waiting import MAX_TIMEOUT
from guerdon.serving.wire.fields import MAX_FIELDS, TooManyFields, Walk

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[bytes, Message]

_LARGE = 64 * 1024
"""Bytes from which on a message may take so much memory that it is looked over first."""


def decode(kind: type[M], data: bytes) -> M:
    """Parse a message.

    Raises:
        InvalidRequest: the bytes are not such a message, or one with too many fields; names
            the field whose text is not UTF-8.
    """
    try:
        if len(data) > _LARGE:
            Walk(data).count(kind.DESCRIPTOR)
        return kind.FromString(data)
    except DecodeError:
        field = Walk(data).find_bad_text(kind.DESCRIPTOR)
    except TooManyFields:
        raise InvalidRequest("request", f"holds more than {MAX_FIELDS} fields") from None
    if field:
        raise InvalidRequest(field, "is not valid UTF-8")
    raise InvalidRequest("request", f"the bytes are not a {kind.DESCRIPTOR.full_name} message")


def call_deadline(context: Context) -> float | None:
    """The call's deadline on `time.monotonic`'s clock; None when it has none.

    gRPC takes timeouts of up to 99,999,999 hours: one beyond `MAX_TIMEOUT` is cut to it.
    """
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + min(remaining, MAX_TIMEOUT)


def generic_handler(
    service: ServiceDescriptor, implementation: object, door: Door, roles: Mapping[str, Role | None]
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
        audited = partial(_audited, method.name, roles[method.name])
        call = _guard(function, door, check, audited, streamed=method.client_streaming)
        make = _HANDLERS[method.client_streaming, method.server_streaming]
        handlers[method.name] = make(call, None, lambda message: message.SerializeToString())
    return guarded(grpc.method_handlers_generic_handler(service.full_name, handlers), door, roles)


_HANDLERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _identify(callers: Callers, role: Role | None, context: Context) -> None:
    """Note who calls.

    Raises:
        Unauthenticated, PermissionDenied: the call may not go on.
    """
    given = authorization_header(context.invocation_metadata())
    set_caller(callers.identify(given, context.peer(), role))


@contextmanager
def _audited(method: str, role: Role | None, context: Context) -> Iterator[None]:
    """Write down what becomes of an administrative call."""
    if role not in (Role.ADMIN, Role.WEIGHTS):
        yield
        return
    audit.begin()
    code = "OK"
    try:
        yield
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    except Exception as error:
        code = status.status_code(error).name
        raise
    finally:
        audit.administered(method, current_caller(), context.peer(), code)


async def read(context: Context, until: asyncio.Future[Any]) -> object | None:
    """The next message of a stream as bytes, EOF at its end, or None once `until` is done."""
    reading: asyncio.Future[Any] = asyncio.ensure_future(context.read())
    try:
        await asyncio.wait({reading, until}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()


async def send(context: Context, message: Message) -> None:
    """Write a reply to a stream.

    A write that is cancelled ends before this does: while gRPC has one, it takes no status that
    would end the call, and the caller would wait for ever.

    Raises:
        Cancelled: the caller has left.
    """
    writing = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.shield(writing)
    except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise Cancelled("the caller has left") from error
    except asyncio.CancelledError:
        await asyncio.gather(writing, return_exceptions=True)
        raise


def _guard(
    function: Callable[..., Awaitable[Any]],
    door: Door,
    check: Callable[[Context], None],
    audited: Callable[[Context], AbstractContextManager[None]],
    *,
    streamed: bool,
) -> Any:
    """A handler of gRPC's: one whose requests are streamed gets the context alone."""

    async def call(data: Any, context: Context) -> Any:
        try:
            with door.serving():
                check(context)
                with door.sharing(current_caller()), audited(context):
                    return await (function(context) if streamed else function(data, context))
        except Exception as error:
            await status.abort(context, status.describe(error))

    return call
