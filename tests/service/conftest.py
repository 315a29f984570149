"""A reward server with fake models, on real sockets, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from guerdon.reward.app import RewardPorts, RewardServer
from guerdon.reward.config import load_config
from guerdon.v1 import admin_pb2_grpc, reward_pb2_grpc

from .fake import Behaviour, FakeLoader


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - threads set no asyncio.Event
        await asyncio.sleep(0.005)


@dataclass
class Harness:
    """A running server and ways to reach it."""

    server: RewardServer
    loader: FakeLoader
    ports: RewardPorts
    channel: grpc.aio.Channel
    admin_channel: grpc.aio.Channel
    http: httpx.AsyncClient
    finished: asyncio.Task[None]

    @property
    def behaviour(self) -> Behaviour:
        return self.loader.behaviour

    @property
    def rewards(self) -> Any:
        return reward_pb2_grpc.RewardServiceStub(self.channel)

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.ModelAdminServiceStub(self.admin_channel)

    async def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 when it is not there."""
        text = (await self.http.get("/metrics")).text
        for found in text.splitlines():
            if found.startswith(line + " "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0

    async def until_metric(self, line: str, condition: Callable[[float], bool]) -> None:
        """Wait until a metric's value is so."""
        while not condition(await self.metric(line)):  # noqa: ASYNC110 - it asks the server
            await asyncio.sleep(0.01)

    async def still_serves(self) -> None:
        """Fails unless a plain call is answered."""
        from guerdon.v1 import common_pb2, reward_pb2

        reply = await self.rewards.Score(
            reward_pb2.ScoreRequest(
                model="m",
                items=[
                    reward_pb2.ScoreItem(
                        prompt=common_pb2.Prompt(text="a b"),
                        responses=[common_pb2.Response(text="c")],
                    )
                ],
            ),
            timeout=20,
        )
        assert len(reply.items[0].scores) == 1


StartServer = Callable[..., AbstractAsyncContextManager[Harness]]


@asynccontextmanager
async def start_server(loader: FakeLoader | None = None, **flags: Any) -> AsyncIterator[Harness]:
    """A server that holds the fake model `m`, unless `models` and `loader` say otherwise."""
    loader = loader or FakeLoader()
    settings = {
        "models": {"m": "first"},
        "port": 0,
        "http_port": 0,
        "admin_port": 0,
        "drain_grace": 10.0,
        "load_from": ["*"],
        **flags,
    }
    server = RewardServer(load_config(None, settings), loader)
    ready: asyncio.Future[RewardPorts] = asyncio.get_running_loop().create_future()
    finished = asyncio.create_task(server.run(ready.set_result, signals=False))
    both: set[asyncio.Future[Any]] = {ready, finished}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if finished.done():
        finished.result()
    ports = ready.result()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.admin_port}") as admin_channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http_port}", timeout=30) as http,
    ):
        try:
            yield Harness(server, loader, ports, channel, admin_channel, http, finished)
        finally:
            loader.behaviour.gate.set()
            server.lifecycle.start_draining()
            await finished


@pytest.fixture
async def served() -> AsyncIterator[Harness]:
    """The plain case."""
    async with start_server() as harness:
        yield harness
