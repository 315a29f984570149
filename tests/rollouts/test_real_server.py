"""Rewards from the real reward server: empty responses, too long ones, and kill -9."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.rollouts.test_rewards import group
from tests.support.ports import free_port
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import AsyncRewardClient
from guerdon.models import Manifest
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.services.rewards import RewardSource


@pytest.mark.slow
async def test_normalised_rewards_are_on_one_scale_and_never_made_up(tmp_path: Path) -> None:
    mean, std = 3.0, 0.25
    folders = {name: tiny_checkpoint(tmp_path / name, "llama") for name in ("m", "bare")}
    Manifest(mean=mean, std=std).write(folders["m"])
    options = {"patience": 120.0, "request_timeout": 30.0, "normalize": True}
    with running_server(folders, dtype="float32") as server:
        # The same weights: `bare` has no statistics, and gives the raw scores.
        raw = RewardSource([f"{server.address}/bare"], patience=120.0, request_timeout=30.0)
        rewards = RewardSource([f"2*{server.address}/m"], **options)
        for each in (raw, rewards):
            await each.start()
        plain, scored = [await each.score(group("Water.", "Rain.")) for each in (raw, rewards)]
        assert len({sample.reward for sample in plain.samples}) == 2
        for before, sample in zip(plain.samples, scored.samples, strict=True):
            expected = (before.reward - mean) / std
            assert sample.parts == {"m": pytest.approx(expected, abs=1e-4)}
            assert sample.reward == pytest.approx(2 * expected, abs=2e-4)
        without = RewardSource([f"{server.address}/bare"], **options)
        with pytest.raises(TrainingError, match="no mean and standard deviation"):
            await without.start()
        for each in (raw, rewards, without):
            await each.close()


@pytest.mark.slow
async def test_a_real_server_scores_what_is_empty_and_comes_back_from_kill_9(
    tmp_path: Path,
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    flags = {"dtype": "float32", "port": free_port()}
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
        (long,) = (await rewards.score(group("word " * 500))).samples
        assert (long.refused, long.reward) == (True, -10.0)  # never cut in silence
        server.process.kill()
        server.process.wait()
        scoring = asyncio.create_task(rewards.score(group(*texts)))
        await asyncio.sleep(1.0)
        assert not scoring.done()
        again = running_server({"m": folder}, **flags)
        await asyncio.to_thread(stack.enter_context, again)
        second = await scoring
        assert [s.reward for s in second.samples] == pytest.approx(
            [s.reward for s in first.samples], abs=1e-5
        )
        assert rewards.faults_survived == 1
        await rewards.close()
