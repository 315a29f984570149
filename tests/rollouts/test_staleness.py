"""100,000 samples through real sockets with random delays: no token is too old, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.rollouts.runs import running, sleeper
from tests.rollouts.support import settings, some_prompts

from guerdon.client.testing import FakePolicyServer, FakeRewardServer

STEPS, PROMPTS, SAMPLES = 50, 10, 50


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0, 1, 2, 4])
async def test_no_token_is_older_than_the_bound(tmp_path: Path, eta: int) -> None:
    """25,000 samples at each of four bounds; the versions are those that the fake really had."""
    prompts = some_prompts(tmp_path, 130)
    async with (
        FakePolicyServer(delay=(0.0, 0.06)) as sampler,
        FakeRewardServer() as rewards,
    ):
        rewards.latency = 0.005
        chosen = settings(
            sampler=sampler.target,
            reward=(f"{rewards.target}/fake",),
            verifier=(),
            prompts_per_step=PROMPTS,
            samples_per_prompt=SAMPLES,
            max_tokens=3,
            max_staleness=eta,
        )
        async with running(chosen, prompts, sampler.target) as run:
            await run.begin()
            for _ in range(STEPS):
                await run.step(sleeper(0.03))
            stats = run.rollouts.stats()
            run.check_books(prompts)
    assert sum(len(group.samples) for group in run.consumed) == STEPS * PROMPTS * SAMPLES
    assert set(run.staleness) == set(range(eta + 1))  # as old as allowed, and no older
    mixed = sum(len({*s.versions_T.tolist()}) > 1 for g in run.consumed for s in g.samples)
    assert (mixed > 0) == (eta > 0)  # weights did change in the middle of completions
    assert stats.expired_groups == 0
    assert stats.groups >= STEPS * PROMPTS
