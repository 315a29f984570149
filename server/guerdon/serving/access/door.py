"""What is decided of a gRPC call from its headers alone, before any of its message is read.

gRPC hands a call with one request to its handler once the whole message is in memory. So a
call that is refused gets another handler, which takes a stream and never reads from it: a
stranger's messages stay in the flow-control window of its connection.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from prometheus_client import Counter as CounterMetric

from guerdon.serving import status
from guerdon.serving.access import audit
from guerdon.serving.access.callers import Callers
from guerdon.serving.access.identity import Caller, Role
from guerdon.serving.errors import Overloaded, PermissionDenied, ServiceError, Unauthenticated

Metadata = Iterable[tuple[str, str | bytes]]


def authorization_header(metadata: Any) -> str | bytes | None:
    """The header `authorization` of a call."""
    return next((value for key, value in metadata or () if key == "authorization"), None)


class Door:
    """Lets calls in, or refuses them from their headers alone.

    Args:
        max_calls: most calls being served at a time, streams included.
        refused: counts refusals by method and status code.
    """

    def __init__(self, callers: Callers, *, max_calls: int, refused: CounterMetric) -> None:
        self.callers = callers
        self._max_calls = max_calls
        self.refused = refused
        self._calls = 0
        self._by_caller: Counter[str] = Counter()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count a call for as long as it is served."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextmanager
    def sharing(self, caller: Caller) -> Iterator[None]:
        """Count a call of a caller, which may have four times as many as there is room for more.

        So one alone gets at most four fifths of the calls, and others find room.

        Raises:
            Overloaded: it has too many.
        """
        calls = self._by_caller[caller.key]
        if calls >= 4 * (self._max_calls - self._calls + 1):
            raise Overloaded(
                f"{calls} calls of {caller.name!r} are being served, more than its part of "
                f"max_calls ({self._max_calls})",
                retry_after=_soon(),
            )
        self._by_caller[caller.key] += 1
        try:
            yield
        finally:
            self._by_caller[caller.key] -= 1
            if not self._by_caller[caller.key]:
                del self._by_caller[caller.key]

    def check(self, method: str, metadata: Metadata | None, role: Role | None) -> None:
        """Raise what a call is refused for.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not make it.
            Overloaded: too many calls are being served.
        """
        try:
            self.callers.identify(authorization_header(metadata), "", role)
            if self._calls >= self._max_calls:
                raise Overloaded(
                    f"the server serves {self._calls} calls already, max_calls allows no more",
                    retry_after=_soon(),
                )
        except ServiceError as error:
            self.refused.labels(method, status.status_code(error).name).inc()
            raise

    def knows(self, metadata: Metadata | None) -> bool:
        """Whether a caller has shown a token, or needs none."""
        try:
            self.callers.identify(authorization_header(metadata), "", None)
        except ServiceError:
            return False
        return True


def _soon() -> float:
    """Seconds, spread out: those who are shed together don't come back together."""
    return random.uniform(0.2, 1.0)  # noqa: S311 - no secret


class Guarded(grpc.GenericRpcHandler):
    """Handlers that are found only for calls that pass a check.

    Args:
        check: gets the method's name and the headers; raises a `ServiceError`.
    """

    def __init__(
        self, handlers: grpc.GenericRpcHandler, check: Callable[[str, Metadata], None]
    ) -> None:
        self._handlers = handlers
        self._check = check

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, or one that refuses it."""
        found = self._handlers.service(details)
        if found is None:
            return None
        method = details.method.rpartition("/")[2]
        try:
            self._check(method, details.invocation_metadata)
        except Exception as error:
            return _refusal(method, error)
        return found


def guarded(
    handlers: grpc.GenericRpcHandler, door: Door, roles: Mapping[str, Role | None]
) -> Guarded:
    """Handlers behind a door, by the role that each method needs."""
    return Guarded(handlers, lambda method, headers: door.check(method, headers, roles[method]))


def _refusal(method: str, error: Exception) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_messages: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if isinstance(error, Unauthenticated | PermissionDenied):
            audit.refused(method, context.peer(), status.status_code(error).name)
        await status.abort(context, status.describe(error))

    return grpc.stream_stream_rpc_method_handler(refuse)
