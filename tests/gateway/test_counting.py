"""Every token that was drawn is counted: of candidates that were stopped too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from starlette.responses import Response, StreamingResponse
from tests.support.formula_engine import HELD_TOKENS, length_of

from guerdon.client.testing import FakeRewardServer
from guerdon.gateway.strategies.adaptive import WAVE
from guerdon.gateway.upstream.sampler import _APART as APART

from .endpoint import chat_reply, start_endpoint
from .support import QUESTION, Gateway, openai_client, running_gateway, start_gateway

BEST_OF, MOST, SEED = 8, 10, 7
LIMIT = 100
"""Tokens that a caller may spend."""
LENGTHS = [length_of([len(QUESTION[0]["content"].split()[0])], i) for i in range(BEST_OF)]
HELD = [i for i, length in enumerate(LENGTHS) if length > HELD_TOKENS]
DRAWN = sum(min(length, HELD_TOKENS) for length in LENGTHS)
"""Tokens of all candidates when those that are longer are held."""
ASKED: dict[str, Any] = {
    "max_tokens": MOST,
    "seed": SEED,
    "stream": True,
    "stream_options": {"include_usage": True},
}
EARLY_STOP = {"best_of": BEST_OF, "strategy": "threshold", "threshold": -1000.0}


class Held:
    """A gateway whose sampler holds long candidates, and whose rewards wait for `scores`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.scores = asyncio.Event()
        receive = gateway.rewards.receive

        async def wait(*args: Any) -> None:
            await self.scores.wait()
            await receive(*args)

        gateway.rewards.receive = wait  # type: ignore[method-assign]

    @asynccontextmanager
    async def asking(
        self, guerdon: dict[str, Any], known: str, *, held_seed: int = SEED, **fields: Any
    ) -> AsyncIterator[AsyncIterator[str]]:
        """A streamed call, as soon as the gateway says so much of it: its further lines."""
        self.gateway.engine.behaviour.held_seed = held_seed
        body = {"model": "policy", "messages": QUESTION, **ASKED, "guerdon": guerdon, **fields}
        http = self.gateway.http
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.aiter_lines()
            async for line in lines:
                if line.endswith(known):
                    break
            yield lines

    async def leave(self, guerdon: dict[str, Any], drawn: int, *, held_seed: int = SEED) -> None:
        """Leave such a call, and check that it has cost just what the engine drew."""
        async with self.asking(guerdon, f", {drawn} tokens", held_seed=held_seed):
            pass
        in_flight = 'requests_in_flight{method="http_chat_completions"}'
        while await self.gateway.metric(in_flight):  # noqa: ASYNC110 - it asks the server
            await asyncio.sleep(0.01)
        assert await self.gateway.metric("unanswered_tokens_total") == drawn
        assert await self.gateway.metric("drawn_tokens_total") == 0
        assert self.gateway.engine.behaviour.tokens == drawn
        await self.spends(LIMIT - drawn)

    async def spends(self, most: int) -> None:
        """Check that the caller has so many tokens left: as many for one candidate, not more."""
        self.scores.set()
        with pytest.raises(openai.RateLimitError):
            await self.gateway.chat("policy:best-of-1", max_tokens=most + 1)
        await self.gateway.chat("policy:best-of-1", max_tokens=most)


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    spending = {"caller_tokens": LIMIT, "caller_seconds": 1e9}
    async with start_gateway(spending=spending, comment_seconds=0.02) as gateway:
        yield Held(gateway)


async def test_usage_is_what_the_engine_drew(held: Held) -> None:
    gateway = held.gateway
    ended = f"{BEST_OF - len(HELD)} of {BEST_OF} drawn"  # their tokens may be told before
    async with held.asking(EARLY_STOP, f"{ended}, 0 scored, {DRAWN} tokens") as lines:
        held.scores.set()
        events = [line async for line in lines if line.startswith("data: {")]
    last = json.loads(events[-1].removeprefix("data: "))
    usage, report = last["usage"], last["guerdon"]
    assert usage["completion_tokens"] == report["tokens"] == DRAWN
    assert gateway.engine.behaviour.tokens == DRAWN
    served = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    assert usage["completion_tokens_details"]["rejected_prediction_tokens"] == DRAWN - served
    assert report["stopped"] == len(HELD)
    assert (HELD[0], report["gain"]) == (0, None)
    assert await gateway.metric('reward_gain_count{strategy="threshold"}') == 0
    assert report["candidates"] == BEST_OF
    tokens = {each["candidate"]: each["tokens"] for each in report["scores"]}
    assert tokens == {i: min(length, HELD_TOKENS) for i, length in enumerate(LENGTHS)}
    stopped = [each["candidate"] for each in report["scores"] if each.get("ended") is False]
    assert stopped == HELD
    assert await gateway.metric("drawn_tokens_total") == DRAWN
    assert await gateway.metric("unanswered_tokens_total") == 0
    assert await gateway.metric('candidates_total{outcome="stopped"}') == len(HELD)
    await held.spends(LIMIT - DRAWN)


async def test_a_caller_who_leaves_has_spent_what_the_engine_drew(held: Held) -> None:
    await held.leave(EARLY_STOP, DRAWN)


async def test_a_second_wave_is_counted_beside_the_first(held: Held) -> None:
    held.scores.set()
    wave = LENGTHS[:WAVE]  # of the second, the long ones are held
    drawn = sum(wave) + sum(min(length, HELD_TOKENS) for length in wave)
    guerdon = {"best_of": 2 * WAVE, "strategy": "adaptive", "min_gain": 0.0}
    await held.leave(guerdon, drawn, held_seed=SEED + WAVE * APART)


async def test_parts_that_grow_are_counted_on(held: Held) -> None:
    held.scores.set()
    chunk, grown = 5, 4
    drawn = sum(min(length, chunk) for length in LENGTHS)
    drawn += chunk * (sum(length > chunk for length in LENGTHS) - 1) + HELD_TOKENS
    assert LENGTHS[grown] > chunk
    assert any(length > chunk for length in LENGTHS[:grown])  # not the first that goes on
    guerdon = {"best_of": BEST_OF, "strategy": "rejection", "chunk": chunk, "keep": 1.0}
    await held.leave(guerdon, drawn, held_seed=SEED + (grown + chunk * APART) * APART)


async def test_of_an_endpoint_nobody_tells_and_nothing_is_made_up() -> None:
    left = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        try:
            yield b"{"
            await asyncio.Event().wait()
        finally:
            left.set()

    def reply(place: int, _body: dict[str, Any]) -> Response:
        return StreamingResponse(stalled()) if place == 0 else chat_reply("one", tokens=3)

    async with start_endpoint(reply) as endpoint, FakeRewardServer(models=("rm",)) as rewards:
        settings = {
            "endpoint": endpoint.url,
            "endpoint_model": "theirs",
            "reward": [f"{rewards.target}/rm"],
            "spending": {"caller_tokens": LIMIT, "caller_seconds": 1e9},
        }
        async with running_gateway(settings) as gateway, openai_client(gateway.http) as client:
            asked = {"strategy": "threshold", "threshold": -1000.0, "best_of": 2}
            found: Any = await client.chat.completions.create(
                model="policy",
                messages=QUESTION,
                max_tokens=MOST,
                extra_body={"guerdon": asked},
            )
            await left.wait()
            rest = LIMIT - 3 - MOST  # it counts whole
            one: dict[str, Any] = {"model": "policy:best-of-1", "messages": QUESTION}
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(**one, max_tokens=rest + 1)
            await client.chat.completions.create(**one, max_tokens=rest)
    assert (found.guerdon["stopped"], found.guerdon["candidates"]) == (1, 2)
    assert sorted(str(each["tokens"]) for each in found.guerdon["scores"]) == ["3", "None"]
    assert (found.usage.completion_tokens, found.usage.prompt_tokens) == (3, 4)
