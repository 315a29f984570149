"""Servers on real sockets in the test's own event loop, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guerdon.client.errors import ServerStatus
from guerdon.serving.process.server import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task or thread does; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.003)


async def reply_of(call: Any) -> Any:
    """The reply to a stream of requests, or the status with which the server refused it."""
    status = ServerStatus(call)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.error(error) from None


@dataclass
class InProcess:
    """A running server and ways to reach it."""

    server: Any
    ports: Any
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    finished: asyncio.Task[None]

    async def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 when it is not there."""
        text = (await self.http.get("/metrics")).text
        found = (each for each in text.splitlines() if each.startswith(line + " "))
        return float(next(found, "0").rsplit(" ", 1)[-1])

    async def health(self, service: str = "") -> Any:
        """What is said of a service, or of the whole."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status

    async def until_health(self, service: str, value: Any) -> None:
        """Wait until a service's health is so."""
        while await self.health(service) != value:  # noqa: ASYNC110 - it asks the server
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(server: Server[Any]) -> AsyncIterator[InProcess]:
    """Run a server until its end; who stops it is the caller."""
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    finished = asyncio.create_task(server.run(ready.set_result, signals=False))
    both: set[asyncio.Future[Any]] = {ready, finished}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if finished.done():
        finished.result()
    ports = ready.result()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http_port}", timeout=30) as http,
    ):
        yield InProcess(server, ports, channel, http, finished)


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


def field_at_fault(status: status_pb2.Status) -> str:
    """The field that google.rpc.BadRequest names."""
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    return str(bad.field_violations[0].field)


def retry_seconds(status: status_pb2.Status) -> float:
    """What google.rpc.RetryInfo says."""
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return float(info.retry_delay.ToTimedelta().total_seconds())
