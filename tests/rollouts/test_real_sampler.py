"""The sampler's real service in a process of its own, killed with SIGKILL in the middle of steps.

Its engine is a formula, so every token tells which weights drew it for which prompt.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.runs import Run, running, sleeper, weights
from tests.rollouts.support import settings, some_prompts
from tests.support.formula_engine import END, logprob_of, token_of
from tests.support.ports import free_port
from tests.support.sampler import formula_sampler

from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.common.services.weights import as_bytes


def check_tokens(sample: Sample) -> None:
    """Each token is what the weights of its version draw, with their log-probability."""
    prompt = sample.prompt_ids_P.tolist()
    drawn = zip(
        sample.response_ids_T.tolist(),
        sample.versions_T.tolist(),
        sample.behaviour_logprobs_T.tolist(),
        strict=True,
    )
    for place, (token, version, logprob) in enumerate(drawn):
        value = sum(sum(bytes(data)) for data in as_bytes(weights(version).tensors()))
        if token != END:
            assert token == token_of(value, prompt, sample.index, place, 0)
        assert logprob == pytest.approx(logprob_of(token, 1.0), rel=1e-6)
    assert sample.finished == (sample.response_ids_T[-1] == END)


async def step_with_kill(run: Run, stack: ExitStack, sampler: Any, after: float, flags: Any) -> Any:
    """A step in which the sampler is killed after some seconds, and started again."""
    stepping = asyncio.create_task(run.step(sleeper(0.05)))
    await asyncio.sleep(after)
    await asyncio.to_thread(sampler.kill)
    again = formula_sampler(**flags)
    sampler = await asyncio.to_thread(stack.enter_context, again)
    await stepping
    return sampler


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0, 2])
async def test_kill_9_at_several_points_of_a_step(tmp_path: Path, eta: int) -> None:
    prompts = some_prompts(tmp_path, 11)
    flags: dict[str, Any] = {"seconds_per_token": 0.02, "port": free_port()}
    with ExitStack() as stack:
        sampler = await asyncio.to_thread(stack.enter_context, formula_sampler(**flags))
        chosen = settings(
            sampler=sampler.address,
            prompts_per_step=4,
            samples_per_prompt=3,
            max_tokens=6,
            max_staleness=eta,
            patience=120.0,
        )
        async with running(chosen, prompts, sampler.address) as run:
            await run.begin()
            for number in range(9):
                if number % 3 == 2:
                    after = 0.01 + 0.05 * (number // 3)
                    sampler = await step_with_kill(run, stack, sampler, after, flags)
                else:
                    await run.step(sleeper(0.05))
            run.check_books(prompts)
            assert run.rollouts.stats().faults_survived >= 1
    assert len(run.consumed) == 36
    assert set(run.staleness) <= set(range(eta + 1))
    for group in run.consumed:
        for sample in group.samples:
            check_tokens(sample)
