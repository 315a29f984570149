"""What a failed call and a health service say."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The rich status of a failed call; checks that it repeats the plain one."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status = status_pb2.Status.FromString(value)
            assert status.code == error.code().value[0]
            assert status.message == error.details()
            return status
    raise AssertionError(f"no details: {error!r}")


async def health(served: Any, service: str = "") -> Any:
    """What a service's health is."""
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status


async def until_health(served: Any, service: str, value: Any) -> None:
    """Wait until a service's health is so."""
    while await health(served, service) != value:  # noqa: ASYNC110 - it asks the server
        await asyncio.sleep(0.01)
