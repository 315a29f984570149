"""`grpc.health.v1` for the server as a whole and for each service.

Probes show no token. From a caller who would need one no message is read, so that it can't
fill the memory: its Check and Watch are answered for the server as a whole, whichever
service they name. All services of a process begin and end to serve together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from guerdon.serving import status
from guerdon.serving.access.door import Door
from guerdon.serving.errors import NotFound, Overloaded

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

MAX_WATCHES = 1024
"""Calls of Watch that are served at a time."""

Request, Response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """The health of a process that holds several services.

    Args:
        services: full names of the services; "" (the whole server) is added.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(("", *services))
        self._serving = False
        self._changed = asyncio.Condition()
        self._watches = 0

    def handler(self, door: Door) -> grpc.GenericRpcHandler:
        """Serves it; `door` tells who needs to show a token and does not."""
        return _Handler(self, door)

    async def set_serving(self, serving: bool) -> None:
        """Say of every service whether it takes calls."""
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def service_status(self, service: str) -> Any:
        """What is said of a service."""
        if service not in self._services:
            return Response.SERVICE_UNKNOWN
        return Response.SERVING if self._serving else Response.NOT_SERVING

    async def check(self, service: str, context: Context) -> Any:
        """The answer of Check."""
        if service not in self._services:
            error = NotFound("there is no such service")
            await status.abort(context, status.describe(error))
        return Response(status=self.service_status(service))

    async def watch(self, service: str, context: Context) -> None:
        """Write the state of a service, and again whenever it changes."""
        if self._watches >= MAX_WATCHES:
            error = Overloaded(f"{self._watches} calls watch already", retry_after=5.0)
            await status.abort(context, status.describe(error))
        self._watches += 1
        try:
            while True:
                said = self.service_status(service)
                await context.write(Response(status=said))
                async with self._changed:
                    while self.service_status(service) == said:
                        await self._changed.wait()
        finally:
            self._watches -= 1


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, health: Health, door: Door) -> None:
        self._door = door

        async def check(request: Any, context: Context) -> Any:
            return await health.check(request.service, context)

        async def watch(request: Any, context: Context) -> None:
            await health.watch(request.service, context)

        async def check_whole(_unread: object, context: Context) -> None:
            await context.write(await health.check("", context))

        async def watch_whole(_unread: object, context: Context) -> None:
            await health.watch("", context)

        read, send = Request.FromString, Response.SerializeToString
        self._known = {
            "Check": grpc.unary_unary_rpc_method_handler(check, read, send),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, read, send),
        }
        self._strangers: dict[str, Any] = {
            "Check": grpc.stream_stream_rpc_method_handler(check_whole, None, send),
            "Watch": grpc.stream_stream_rpc_method_handler(watch_whole, None, send),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        service, _, method = details.method.removeprefix("/").partition("/")
        if service != SERVICE_NAME:
            return None
        known = self._door.knows(details.invocation_metadata)
        return (self._known if known else self._strangers).get(method)
