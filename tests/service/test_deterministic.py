"""Deterministic mode behind a real server: the same bits, whatever is asked beside."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import AsyncRewardClient, Retry

REQUESTS, IN_FLIGHT = 1000, 64
WORDS = [f"word{number}" for number in range(40)]


def texts(draw: random.Random) -> list[tuple[str, list[str]]]:
    """Prompts, some of them several times, each with one to three answers."""
    prompts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 20))) for _ in range(REQUESTS // 2)]
    return [
        (
            draw.choice(prompts),
            [
                " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
                for _ in range(draw.choice((1, 1, 3)))
            ],
        )
        for _ in range(REQUESTS)
    ]


async def scores(
    server: RunningServer, asked: list[tuple[str, list[str]]], order: list[int]
) -> list[list[float]]:
    """The scores of all requests, sent in an order of one's own."""
    found: list[list[float]] = [[] for _ in asked]
    waiting = iter(order)
    async with AsyncRewardClient(server.address, timeout=600, retry=Retry(attempts=100)) as client:

        async def caller() -> None:
            for place in waiting:
                prompt, answers = asked[place]
                found[place] = (await client.score_one("m", prompt, answers)).values

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_requests_in_any_order_give_the_same_bits(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked = texts(draw)
    folder = tiny_checkpoint(tmp_path / "m", "llama", max_positions=1024)
    order = list(range(REQUESTS))
    with running_server({"m": folder}, dtype="float32", deterministic=True) as server:
        first = asyncio.run(scores(server, asked, order))
    draw.shuffle(order)
    with running_server({"m": folder}, dtype="float32", deterministic=True, devices=2) as server:
        assert asyncio.run(scores(server, asked, order)) == first
