"""A gateway before a real sampler (with the formula engine) and rewards, all on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI
from tests.support.formula_engine import FormulaEngine
from tests.support.in_process import InProcess, serving
from tests.support.sampler_service import Harness as SamplerHarness
from tests.support.sampler_service import start_sampler

from guerdon.client.testing import FakeRewardServer
from guerdon.gateway.app import GatewayServer
from guerdon.gateway.config import load_config

QUESTION: list[Any] = [{"role": "user", "content": "What is the highest mountain?"}]


def numbers_in(text: str) -> list[int]:
    """The formula engine's tokens, which its tokenizer writes as numbers."""
    return [int(word) for word in text.split()]


def reward_of(text: str) -> float:
    """The fake reward: any change of a text changes it."""
    return sum((i + 1) * n for i, n in enumerate(numbers_in(text))) % 1009 / 100


@dataclass
class Gateway(InProcess):
    """A running gateway, what it stands in front of, and ways to reach it."""

    sampler: SamplerHarness
    rewards: FakeRewardServer
    openai: AsyncOpenAI
    """OpenAI's own client, unmodified."""

    @property
    def engine(self) -> FormulaEngine:
        return self.sampler.engine

    async def chat(self, model: str = "policy", **fields: Any) -> Any:
        """One chat by OpenAI's client."""
        given = {"model": model, "messages": QUESTION, **fields}
        return await self.openai.chat.completions.create(**given)

    async def post(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        """One chat as it is on the wire."""
        given = {"model": "policy", "messages": QUESTION, **body}
        return await self.http.post("/v1/chat/completions", json=given, headers=headers)

    async def metric(self, line: str) -> float:
        return await super().metric(f"guerdon_gateway_{line}")


def openai_client(http: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{http.base_url}/v1/", api_key="key", max_retries=0)


@asynccontextmanager
async def start_gateway(
    score: Callable[[Any, Any], float] | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway before a sampler and a fake reward server with the models rm and small."""
    rewards = FakeRewardServer(
        score or (lambda prompt, response: reward_of(response)), models=("rm", "small")
    )
    async with start_sampler() as sampler, rewards:
        models = (f"{rewards.target}/rm", f"{rewards.target}/small")
        before = gateway_before(sampler, *models, **settings)
        async with before as running, openai_client(running.http) as client:
            rewards.calls.clear()  # the start looks at the models
            yield Gateway(**vars(running), sampler=sampler, rewards=rewards, openai=client)


def gateway_before(
    sampler: SamplerHarness, *rewards: str, **settings: Any
) -> AbstractAsyncContextManager[InProcess]:
    """A gateway before a sampler and reward models, each HOST:PORT/MODEL."""
    address = f"127.0.0.1:{sampler.ports.port}"
    return running_gateway({"sampler": address, "reward": rewards, **settings})


@asynccontextmanager
async def running_gateway(settings: dict[str, Any]) -> AsyncIterator[InProcess]:
    """A gateway on free ports."""
    config = load_config(None, {"port": 0, "http_port": 0, "drain_grace": 10.0, **settings})
    server = GatewayServer(config)
    async with serving(server) as running:
        try:
            yield running
        finally:
            server.lifecycle.start_draining()
            await asyncio.wait({running.finished})
            if not running.finished.cancelled():
                running.finished.result()
