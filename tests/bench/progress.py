"""What telling of progress costs a sampler: the same completions with `on_progress`, and without.

The sampler is a real process with an engine of formulas, all of whose completions grow by a token
in each step, so that a call that is told of them gets a message for each step: little else is
computed, and a message weighs more than beside a real engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.bench.common import BenchSettings, spread, table
from tests.support.sampler import formula_sampler

from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import CompletionProgress, GenerateItem
from guerdon.together import together

CALLS, COMPLETIONS, TOKENS = 200, 8, 64
QUESTION = [{"role": "user", "content": "What is rain and where does it go?"}]
DRAWN = CALLS * COMPLETIONS * TOKENS


async def speed(
    policy: AsyncPolicyClient, on_progress: Callable[[CompletionProgress], None] | None
) -> float:
    """Tokens per second of all calls, made at once."""

    async def call(seed: int) -> int:
        items = [GenerateItem(QUESTION, n=COMPLETIONS, seed=seed)]
        drawing = policy.generate(
            items, max_tokens=TOKENS, ignore_eos=True, on_progress=on_progress
        )
        return sum([len(drawn.token_ids) async for drawn in drawing])

    begun = time.perf_counter()
    drawn = sum(await together([call(seed) for seed in range(CALLS)]))
    assert drawn == DRAWN
    return drawn / (time.perf_counter() - begun)


async def compare(address: str, rounds: int) -> tuple[list[float], list[float], int]:
    """Tokens per second without and with progress, in turns, and how often it was told."""
    told = 0

    def tell(_each: CompletionProgress) -> None:
        nonlocal told
        told += 1

    silent, telling = [], []
    async with AsyncPolicyClient(address, timeout=None) as policy:
        await speed(policy, tell)  # warms up
        told = 0
        for _ in range(rounds):
            silent.append(await speed(policy, None))
            telling.append(await speed(policy, tell))
    return silent, telling, told


def run(settings: BenchSettings) -> None:
    """Tokens per second with and without progress, and their ratio."""
    with formula_sampler(max_in_flight=2 * CALLS * COMPLETIONS) as sampler:
        silent, telling, told = asyncio.run(compare(sampler.address, settings.rounds))
    ratios = [b / a for a, b in zip(silent, telling, strict=True)]
    table(
        f"{CALLS} calls at once, {COMPLETIONS} completions of {TOKENS} tokens each; "
        f"{settings.rounds} rounds, tokens per second",
        [
            ("without on_progress", spread(silent, 0)),
            ("with on_progress", spread(telling, 0)),
            ("with / without, of each round", spread(ratios)),
            ("counts told, of each token drawn", f"{told / (settings.rounds * DRAWN):.2f}"),
        ],
        settings.console,
    )
