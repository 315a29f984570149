"""A reward server with fake models, on real sockets, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from tests.support.in_process import InProcess, serving

from guerdon.reward.app import RewardServer
from guerdon.reward.config import load_config
from guerdon.reward.types import EngineKeeper
from guerdon.v1 import admin_pb2_grpc, reward_pb2_grpc

from .fake import Behaviour, FakeLoader
from .messages import item, score_request


@dataclass
class Harness(InProcess):
    """A running reward server and ways to reach it."""

    loader: FakeLoader
    admin_channel: grpc.aio.Channel

    @property
    def behaviour(self) -> Behaviour:
        return self.loader.behaviour

    @property
    def rewards(self) -> Any:
        return reward_pb2_grpc.RewardServiceStub(self.channel)

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.ModelAdminServiceStub(self.admin_channel)

    async def until_metric(self, line: str, condition: Callable[[float], bool]) -> None:
        """Wait until a metric's value is so."""
        while not condition(await self.metric(line)):  # noqa: ASYNC110 - it asks the server
            await asyncio.sleep(0.01)

    async def still_serves(self) -> None:
        """Fails unless a plain call is answered."""
        reply = await self.rewards.Score(score_request(item("a b", "c")), timeout=20)
        assert len(reply.items[0].scores) == 1


StartServer = Callable[..., AbstractAsyncContextManager[Harness]]


@asynccontextmanager
async def start_server(
    loader: FakeLoader | None = None, engines: EngineKeeper | None = None, **flags: Any
) -> AsyncIterator[Harness]:
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
    server = RewardServer(load_config(None, settings), loader, engines)
    async with (
        serving(server) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.admin_port}") as admin_channel,
    ):
        try:
            yield Harness(**vars(running), loader=loader, admin_channel=admin_channel)
        finally:
            loader.behaviour.gate.set()
            loader.behaviour.may_load.set()
            server.lifecycle.start_draining()
            await running.finished


@pytest.fixture
async def served() -> AsyncIterator[Harness]:
    """The plain case."""
    async with start_server() as harness:
        yield harness
