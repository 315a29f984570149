"""A judge as the reward of a training run: waited for, and never made up."""

from __future__ import annotations

import pytest
from tests.rollouts.test_rewards import group, source

from guerdon.trainer.common.errors import ServiceGone

from .conftest import StartJudge
from .endpoint import Answer, ScriptedEndpoint, replies
from .test_data import shown


async def test_a_run_gets_verdicts_as_rewards_and_waits_for_them(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies("Hm.", Answer(b"", 503), "Score: 4", "Score: 9")
    async with judged("[limits]\ntries = 1\nat_once = 1\n") as run:
        rewards = source(f"0.5*127.0.0.1:{run.ports.port}/j")
        await rewards.start()
        scored = await rewards.score(group("Because.", "Therefore."))
        await rewards.close()
    assert [sample.parts for sample in scored.samples] == [{"j": 4.0}, {"j": 9.0}]
    assert [sample.reward for sample in scored.samples] == [2.0, 4.5]
    assert [shown(question, "user") for question in endpoint.questions()] == ["Why?"] * 4


async def test_a_run_ends_where_no_verdict_comes(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies("Score: 10\nScore: 2")
    async with judged("[limits]\ntries = 1\n") as run:
        rewards = source(f"127.0.0.1:{run.ports.port}/j", patience=0.5)
        await rewards.start()
        with pytest.raises(ServiceGone, match="several verdicts that differ"):
            await rewards.score(group("Score: 10"))
        await rewards.close()
