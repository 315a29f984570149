"""What vLLM draws for us: log-probabilities, seeds, ends, cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from guerdon.sampler.types import FinishReason, SamplingOptions

pytest.importorskip("vllm")

if TYPE_CHECKING:
    from tests.support.engine import Served

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PROMPT = np.array([5, 6, 7, 8, 9, 41, 200], dtype=np.int32)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_of_the_distribution_that_is_drawn_from(
    served: Served, temperature: float
) -> None:
    completions = await served.draw(n=6, max_tokens=20, temperature=temperature)
    assert [c.index for c in completions] == list(range(6))
    assert len({c.token_ids.tobytes() for c in completions}) == 6
    served.check(completions, temperature=temperature)


async def test_a_seed_repeats_the_draw_and_its_completions_differ(served: Served) -> None:
    first = await served.draw(n=3, seed=11)
    again = await served.draw(n=3, seed=11)
    other = await served.draw(n=3, seed=12)
    ids = [[c.token_ids.tolist() for c in of] for of in (first, again, other)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert len({tuple(row) for row in ids[0]}) == 3


async def test_temperature_0_takes_the_likeliest(served: Served) -> None:
    first, second = await served.draw(n=2, temperature=0.0, max_tokens=8, ignore_eos=True)
    assert first.token_ids.tolist() == second.token_ids.tolist()
    whole = [*PROMPT, *first.token_ids]
    likeliest = served.plain.likeliest(served.tensors, whole)[len(PROMPT) - 1 :]
    assert first.token_ids.tolist() == likeliest


async def test_a_completion_ends_at_a_stop_token_which_it_keeps(served: Served) -> None:
    (whole,) = await served.draw(seed=5, max_tokens=12, ignore_eos=True)
    assert whole.finish_reason is FinishReason.LENGTH
    assert len(whole.token_ids) == 12
    stop = int(whole.token_ids[6])
    first = whole.token_ids.tolist().index(stop)
    (ended,) = await served.draw(seed=5, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    assert ended.finish_reason is FinishReason.STOP
    assert ended.token_ids.tolist() == whole.token_ids.tolist()[: first + 1]
    served.check([ended])


async def test_no_more_is_drawn_than_there_is_room_for(served: Served) -> None:
    most = served.engine.info.max_tokens
    prompt = np.random.default_rng(0).integers(7, 350, size=most - 5).astype(np.int32)
    (completion,) = await served.draw(prompt, max_tokens=100, ignore_eos=True)
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.token_ids) == 5
    served.check([completion], prompt)


async def test_cancelling_stops_vllm_too(served: Served) -> None:
    async def all_of() -> None:
        options = SamplingOptions(max_tokens=900, ignore_eos=True)
        async for _ in served.engine.generate(PROMPT, options, n=6, seed=None):
            pass

    task = asyncio.create_task(all_of())
    await served.until_running(6)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await served.until_running(0)
    assert served.engine.load() == (0, 0)


async def test_a_short_prompt_is_computed_once_for_its_completions(served: Served) -> None:
    """vLLM shares whole blocks of its cache only; on CPUs it would take 128 tokens for one."""
    from vllm import SamplingParams, TokensPrompt

    ids = np.random.default_rng(7).integers(7, 350, size=100).tolist()
    llm = served.engine._llm._engine()

    async def cached(name: str) -> int:
        sampling = SamplingParams(max_tokens=2, ignore_eos=True)
        found = [o async for o in llm.generate(TokensPrompt(prompt_token_ids=ids), sampling, name)]
        return int(found[-1].num_cached_tokens)

    shared = sorted(await asyncio.gather(*(cached(f"shared {i}") for i in range(4))))
    assert shared[1:] == [96] * 3
    completions = await served.draw(np.array(ids, dtype=np.int32), n=4, max_tokens=8)
    served.check(completions, np.array(ids, dtype=np.int32))
