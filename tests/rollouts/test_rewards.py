"""Rewards over real sockets: one item for a group, never an invented number."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest

from guerdon.client.testing import FakeRewardServer
from guerdon.trainer.common.errors import ServiceGone, SettingsError, TrainingError
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.reward_specs import parse_reward
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task

OTHER = "is now revision rev-2, and the run began with rev-1"


def group(*texts: str, answer: str | None = None) -> Group:
    row = PromptRow(6, ({"role": "user", "content": "Why?"},), answer)
    task = Task(0, row, np.array([1, 2], dtype=np.int32))
    one = np.ones(3, dtype=np.int32)
    return Group(
        task,
        [
            Sample(0, i, task.prompt_ids_P, one, np.zeros(3, dtype=np.float32), one, True, text)
            for i, text in enumerate(texts)
        ],
    )


def source(*rewards: str, verifiers: tuple[str, ...] = (), **changes: Any) -> RewardSource:
    values = {"patience": 10.0, "request_timeout": 5.0} | changes
    return RewardSource(rewards, verifiers, **values)


async def test_a_group_is_one_item_and_its_reward_the_weighted_sum() -> None:
    async with FakeRewardServer(models=["long", "short"]) as server:
        server.add_revision("short", "rev-9", lambda prompt, response: -float(len(response)))
        rewards = source(
            f"{server.target}/long",
            f"0.5*{server.target}/short",
            verifiers=("10*exact", "length:6"),
        )
        await rewards.start()
        scored = await rewards.score(group("abcd", "", "42", answer="42"))
        await rewards.close()
    assert [sample.parts for sample in scored.samples] == [
        {"long": 4.0, "short": -4.0, "exact": 0.0, "length:6": 0.5},
        {"long": 0.0, "short": 0.0, "exact": 0.0, "length:6": 0.5},
        {"long": 2.0, "short": -2.0, "exact": 1.0, "length:6": 0.5},
    ]
    assert [sample.reward for sample in scored.samples] == [2.5, 0.5, 11.5]
    calls = [call.request for call in server.calls if call.method == "Score"]
    assert sorted(call.model for call in calls) == ["long@rev-1", "short@rev-9"]
    for call in calls:
        assert [len(item.responses) for item in call.items] == [3]
        assert call.items[0].prompt.conversation.messages[0].content == "Why?"
        assert (call.options.priority, call.options.truncation) == (2, 1)


async def test_a_server_that_restarts_is_waited_for() -> None:
    async with FakeRewardServer() as server:
        rewards = source(f"{server.target}/fake")
        await rewards.start()
        await server.stop()
        scoring = asyncio.create_task(rewards.score(group("ab")))
        await asyncio.sleep(0.3)
        assert not scoring.done()
        await server.start()
        assert (await scoring).samples[0].reward == 2.0
        server.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, times=2, retry_after=0.01)
        await rewards.score(group("ab"))
        assert rewards.faults_survived == 1
        assert rewards.served[0].patience.overloads == 2
        await rewards.close()


async def test_a_server_that_stays_away_ends_it_in_one_sentence() -> None:
    async with FakeRewardServer() as server:
        rewards = source(f"{server.target}/fake", patience=0.5)
        await rewards.start()
        await server.stop()
        message = (
            rf"^the reward model 'fake' at {server.target} gave no answer for 0\.5 seconds "
            r"\(--patience\); the last error was UNAVAILABLE: [^\n]+$"
        )
        with pytest.raises(ServiceGone, match=message):
            await rewards.score(group("ab"))
        await rewards.close()


async def test_a_refusal_ends_it_at_once_and_names_the_prompt() -> None:
    async with FakeRewardServer() as server:
        rewards = source(f"{server.target}/fake")
        await rewards.start()
        server.fail(grpc.StatusCode.INVALID_ARGUMENT, "items[0]: 5000 tokens, over 4096")
        with pytest.raises(ServiceRefused, match=r"refuses: .*5000 tokens.*the prompt is row 7"):
            await rewards.score(group("ab"))
        await rewards.close()
        unknown = source(f"{server.target}/none")
        with pytest.raises(ServiceRefused, match=r"'none' at .* NOT_FOUND"):
            await unknown.start()
        await unknown.close()


async def test_another_revision_is_never_mixed_in() -> None:
    async with FakeRewardServer() as server:
        rewards = source(f"{server.target}/fake")
        await rewards.start()
        server.add_revision("fake", "rev-2", lambda prompt, response: 1000.0)
        assert (await rewards.score(group("ab"))).samples[0].reward == 2.0  # rev-1 is still there
        server.remove_revision("fake", "rev-1")
        with pytest.raises(TrainingError, match=OTHER):
            await rewards.score(group("ab"))
        resumed = source(f"{server.target}/fake")
        resumed.load_state(rewards.state())
        with pytest.raises(TrainingError, match=OTHER):
            await resumed.start()
        await rewards.close()
        await resumed.close()


async def test_a_model_that_is_not_loaded_yet_is_waited_for() -> None:
    async with FakeRewardServer() as server:
        rewards = source(f"{server.target}/fake")
        await rewards.start()
        loaded = server.models.pop("fake")
        scoring = asyncio.create_task(rewards.score(group("ab")))
        await asyncio.sleep(0.3)
        server.models["fake"] = loaded
        assert (await scoring).samples[0].reward == 2.0
        await rewards.close()


async def test_a_number_that_is_none_is_refused() -> None:
    async with FakeRewardServer(lambda prompt, response: math.nan) as server:
        rewards = source(f"{server.target}/fake")
        await rewards.start()
        scored = group("ab")
        with pytest.raises(TrainingError):
            await rewards.score(scored)
        assert math.isnan(scored.samples[0].reward)
        assert not scored.samples[0].parts
        await rewards.close()


@pytest.mark.parametrize(
    ("spec", "weight", "address", "model", "name"),
    [
        ("host:1/m", 1.0, "host:1", "m", "m"),
        ("-0.5*host:1/m@abc", -0.5, "host:1", "m@abc", "m"),
        ("[::1]:50051/a/b", 1.0, "[::1]:50051", "a/b", "a/b"),
    ],
)
def test_specifications(spec: str, weight: float, address: str, model: str, name: str) -> None:
    found = parse_reward(spec)
    assert (found.weight, found.address, found.model, found.name) == (weight, address, model, name)


@pytest.mark.parametrize(
    "spec", ["host:1", "host:1/", "host/m", "x*host/m", "0*host:1/m", ":1/m", ""]
)
def test_wrong_specifications(spec: str) -> None:
    with pytest.raises(SettingsError, match=r"^heldout_reward: "):
        parse_reward(spec, "heldout_reward")


async def test_names_are_used_once() -> None:
    with pytest.raises(SettingsError, match="two rewards have one name: 'm', 'm', 'exact'"):
        source("a:1/m", "b:1/m", verifiers=("exact",))
