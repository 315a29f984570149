"""Rewards from the real reward server: empty responses, too long ones, and kill -9."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.rollouts.test_rewards import group
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import AsyncRewardClient
from guerdon.trainer.rl.rewards import RewardSource
from guerdon.trainer.rl.services import ServiceRefused


@pytest.mark.slow
async def test_a_real_server_scores_what_is_empty_and_comes_back_from_kill_9(
    tmp_path: Path,
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    flags = {"dtype": "float32"}
    texts = ["Water.", "", "It is water that falls from clouds."]
    with ExitStack() as stack:
        server = stack.enter_context(running_server({"m": folder}, **flags))
        rewards = RewardSource([f"{server.address}/m"], patience=120.0, request_timeout=30.0)
        await rewards.start()
        first = await rewards.score(group(*texts))
        async with AsyncRewardClient(server.address) as client:
            for text, sample in zip(texts, first.samples, strict=True):
                alone = await client.score_one("m", [{"role": "user", "content": "Why?"}], [text])
                assert sample.reward == pytest.approx(alone.values[0], abs=1e-5)
        with pytest.raises(ServiceRefused, match=r"the prompt is row 7"):
            await rewards.score(group("word " * 500))  # never cut in silence
        server.process.kill()
        server.process.wait()
        scoring = asyncio.create_task(rewards.score(group(*texts)))
        await asyncio.sleep(1.0)
        assert not scoring.done()
        again = running_server({"m": folder}, port=server.port, **flags)
        await asyncio.to_thread(stack.enter_context, again)
        second = await scoring
        assert [s.reward for s in second.samples] == pytest.approx(
            [s.reward for s in first.samples], abs=1e-5
        )
        assert rewards.faults_survived == 1
        await rewards.close()
