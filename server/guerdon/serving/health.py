"""`grpc.health.v1` for the server as a whole and for each service."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """The health of a process that holds several services.

    Args:
        services: full names of the services; "" (the whole server) is added.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = ("", *services)
        self._servicer = HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_serving(self, serving: bool) -> None:
        """Say of every service whether it takes calls."""
        response = health_pb2.HealthCheckResponse
        value = response.SERVING if serving else response.NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, value)
