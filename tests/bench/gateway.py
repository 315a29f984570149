"""What the gateway adds: the same best of eight, asked of it and of the services behind it.

Both services are real processes with little to compute (an engine of formulas, a tiny model), so
that what is left is the way there and back.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from tests.bench.common import BenchSettings, table
from tests.support.gateway import gateway_process
from tests.support.sampler import formula_sampler
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import AsyncRewardClient, Item
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import GenerateItem
from guerdon.gateway.upstream.rewards import BURST_SECONDS

BEST_OF, MAX_TOKENS = 8, 16
QUESTION = [{"role": "user", "content": "What is rain and where does it go?"}]
WARM_UP = 20


async def directly(
    policy: AsyncPolicyClient, rewards: AsyncRewardClient, seed: int, wait: float | None = None
) -> float:
    """The score of the best of eight.

    Args:
        policy: draws them.
        rewards: scores each as soon as it has ended.
        seed: of the draws.
        wait: seconds for which an answer waits for others, to be scored by one request with them.
    """
    waiting: list[str] = []
    scoring: list[asyncio.Task[float]] = []

    async def score_waiting() -> float:
        if wait is not None:
            await asyncio.sleep(wait)
        texts = waiting[:]
        waiting.clear()
        return max((await rewards.score("m", [Item(QUESTION, texts)])).scores[0])

    item = GenerateItem(QUESTION, n=BEST_OF, seed=seed)
    async for drawn in policy.generate([item], max_tokens=MAX_TOKENS, return_text=True):
        assert drawn.text is not None
        waiting.append(drawn.text)
        if len(waiting) == 1:
            scoring.append(asyncio.create_task(score_waiting()))
        if wait is None:
            await asyncio.sleep(0)  # the task takes its text
    return max(await asyncio.gather(*scoring))


async def through_gateway(http: httpx.AsyncClient, seed: int) -> float:
    """The same by the gateway."""
    body = {"messages": QUESTION, "max_tokens": MAX_TOKENS, "seed": seed, "best_of": BEST_OF}
    reply = await http.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    return float(reply.json()["choices"][0]["guerdon"]["score"])


async def compare(sampler: str, rewards: str, gateway: str, calls: int) -> tuple[list[float], ...]:
    """Milliseconds of each call: directly, so with answers in groups, by the gateway, in turns."""
    direct, grouped, through = [], [], []
    async with (
        AsyncPolicyClient(sampler) as policy,
        AsyncRewardClient(rewards) as client,
        httpx.AsyncClient(base_url=gateway) as http,
    ):
        for place in range(WARM_UP + calls):
            for taken, call in (
                (direct, lambda: directly(policy, client, place)),  # noqa: B023
                (grouped, lambda: directly(policy, client, place, BURST_SECONDS)),  # noqa: B023
                (through, lambda: through_gateway(http, place)),  # noqa: B023
            ):
                begun = time.perf_counter()
                await call()
                taken.append(1000 * (time.perf_counter() - begun))
    return direct[WARM_UP:], grouped[WARM_UP:], through[WARM_UP:]


def run(settings: BenchSettings) -> None:
    """What the gateway adds to a call, at the median of paired calls."""
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_checkpoint(Path(scratch) / "tiny", "llama")
        with (
            formula_sampler() as sampler,
            running_server({"m": model}, forked=False) as rewards,
            gateway_process(sampler=sampler.address, reward=[f"{rewards.address}/m"]) as gateway,
        ):
            direct, grouped, through = asyncio.run(
                compare(sampler.address, rewards.address, gateway.url, settings.texts)
            )

    def added(to: list[float]) -> str:
        return f"{statistics.median(b - a for a, b in zip(to, through, strict=True)):.1f}"

    table(
        f"the best of {BEST_OF}, {settings.texts} calls one after the other, ms at the median",
        [
            ("asked directly, a request for each score", f"{statistics.median(direct):.1f}"),
            ("the same, one for all that end together", f"{statistics.median(grouped):.1f}"),
            ("through the gateway", f"{statistics.median(through):.1f}"),
            ("added to the first, of paired calls", added(direct)),
            ("added to the second", added(grouped)),
        ],
        settings.console,
    )
