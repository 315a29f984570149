"""Listening, faults and errors, which both fake servers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from guerdon.client.config import Clock
from guerdon.client.sync import run

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    # As the real servers: clients may ping as often as their keepalive says.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class FakeRefusal(Exception):
    """The fake answers with an error."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def refused(
    code: grpc.StatusCode,
    message: str,
    details: Iterable[Message] = (),
    *,
    retry_after: float | None = None,
) -> FakeRefusal:
    """The error to answer with; `retry_after` may be negative, as a test wants it."""
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=message)
    for detail in details:
        status.details.add().Pack(detail)
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return FakeRefusal(status)


async def abort(context: Any, status: status_pb2.Status) -> NoReturn:
    """End a call with a status and its details."""
    code = getattr(grpc.StatusCode, code_pb2.Code.Name(status.code))
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, status.message, trailers if status.details else ())
    raise AssertionError("abort raises")


@dataclass(slots=True)
class _Fault:
    """What happens instead of an answer."""

    status: status_pb2.Status
    times: int
    method: str | None


class FakeServer:
    """A fake that listens on a loopback port, and fails when told."""

    SERVICE: ClassVar[str]
    """The service that health is asked of."""
    MESSAGE_BYTES: ClassVar[int]
    """The largest message that the real server takes, too."""

    def __init__(self) -> None:
        self.port = 0
        self._faults: deque[_Fault] = deque()
        self._breaks: deque[int] = deque()
        self._server: grpc.aio.Server | None = None
        self._health = health_aio.HealthServicer()

    @property
    def target(self) -> str:
        """`host:port`, for a client."""
        return f"127.0.0.1:{self.port}"

    # Start and stop

    def add_services(self, server: grpc.aio.Server) -> None:
        """Put what answers into a server that is about to start."""
        raise NotImplementedError

    async def start(self) -> None:
        """Listen: on a free port, later on the same one again."""
        server = grpc.aio.server(
            options=[*_OPTIONS, ("grpc.max_receive_message_length", self.MESSAGE_BYTES)]
        )
        self.add_services(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self.set_serving(True)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Drop all connections and stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def restart(self) -> None:
        """Drop all connections and listen on the same port again."""
        await self.stop()
        await self.start()

    async def set_serving(self, serving: bool) -> None:
        """What `grpc.health.v1` says; calls are answered either way."""
        status = health_pb2.HealthCheckResponse
        for service in ("", self.SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        run(self.start())
        return self

    def __exit__(self, *exc_info: object) -> None:
        run(self.stop())

    # Faults

    def fail(
        self,
        code: grpc.StatusCode,
        message: str = "injected by the test",
        *,
        times: int = 1,
        retry_after: float | None = None,
        method: str | None = None,
    ) -> None:
        """Answer the next requests with an error; items of a stream each count.

        An update of weights is refused at its `begin`.

        Args:
            code: the status.
            message: its text.
            times: how many requests.
            retry_after: sent as `google.rpc.RetryInfo`.
            method: such as `Score`; any when not given.
        """
        status = refused(code, message, retry_after=retry_after).status
        self._faults.append(_Fault(status, times, method))

    def break_streams(self, *, after: int, times: int = 1) -> None:
        """End the next streams with UNAVAILABLE after some replies, whatever was asked."""
        self._breaks.extend([after] * times)

    def take_break(self) -> int | None:
        """After how many replies this stream is to break."""
        return self._breaks.popleft() if self._breaks else None

    def raise_fault(self, method: str) -> None:
        """Raise the error that the next call of a method is to get, if any."""
        for fault in self._faults:
            if fault.times > 0 and fault.method in (None, method):
                fault.times -= 1
                raise FakeRefusal(fault.status)


class FakeClock:
    """A clock that sleeps in no time and remembers how long; give `clock.clock` to a client.

    Args:
        chance: stands for the jitter: where between its bounds a random number lies, 0 to 1.
    """

    def __init__(self, chance: float = 0.5) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []
        self.chance = chance

    @property
    def clock(self) -> Clock:
        """The `clock` argument for a client."""
        return Clock(now=lambda: self.time, sleep=self._sleep, uniform=self._uniform)

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance
