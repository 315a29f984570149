"""Reward models that only rank: refused before a token is drawn, and told of at the start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.judge.conftest import JudgeLoader, write_settings
from tests.service.conftest import start_server
from tests.support.in_process import InProcess
from tests.support.sampler_service import start_sampler

from guerdon.client.testing import FakeRewardServer

from .support import QUESTION, gateway_before

WHY = "compares answers with each other and has no score for one: give --reward a model that scores"
AWAY = "the reward model rm can't be looked at now, but when a call asks for it: "
LOGGED = "reward: calls that ask for {} are refused, since it " + WHY


class RankingServer(FakeRewardServer):
    """Its models only rank, while it says so."""

    ranks_only = True

    def describe(self, name: str, revision: str) -> Any:
        info = super().describe(name, revision)
        info.ranks_only = self.ranks_only
        return info


async def refused(gateway: InProcess, **guerdon: Any) -> dict[str, Any]:
    """The error of a call, which is the caller's to mend."""
    body = {"model": "policy", "messages": QUESTION, "guerdon": guerdon}
    reply = await gateway.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


async def answered(gateway: InProcess, **guerdon: Any) -> bool:
    body = {"model": "policy", "messages": QUESTION, "guerdon": guerdon}
    reply = await gateway.http.post("/v1/chat/completions", json=body)
    return bool(reply.json()["guerdon"]["ranked"])


@pytest.mark.parametrize("unranked", ["refuse", "first"])
async def test_a_judge_that_compares_is_refused_before_a_token_is_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unranked: str
) -> None:
    judge = write_settings(tmp_path / "judge.toml", "http://127.0.0.1:1/v1", ask="compare")
    models = {"j": str(judge), "m": "first"}
    async with start_server(JudgeLoader(), models=models) as rewards, start_sampler() as sampler:
        named = [f"127.0.0.1:{rewards.ports.port}/{model}" for model in models]
        async with gateway_before(sampler, *named, unranked=unranked) as gateway:
            assert LOGGED.format("j") in caplog.messages
            for field, guerdon in (
                ("guerdon.model", {}),  # the first is the default
                ("guerdon.small_model", {"strategy": "cascade", "model": "m", "small_model": "j"}),
            ):
                error = await refused(gateway, **guerdon)
                assert error["param"] == field
                assert error["message"] == f"{field}: is 'j', which {WHY}"
            assert sampler.engine.behaviour.tokens == 0
            assert await answered(gateway, model="m")


async def test_a_look_that_failed_is_not_repeated_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guerdon.gateway.upstream.rewards.LOOK_AGAIN_SECONDS", 1e9)
    async with start_sampler() as sampler, FakeRewardServer(models=("rm",)) as rewards:
        rewards.fail(grpc.StatusCode.PERMISSION_DENIED, "no", times=100, method="GetModel")
        async with gateway_before(sampler, f"{rewards.target}/rm") as gateway:
            assert await answered(gateway)
            seen = len(rewards.calls)
            assert await answered(gateway)
            assert {call.method for call in rewards.calls[seen:]} == {"Score"}


async def test_a_server_that_was_away_at_the_start_is_looked_at_when_it_is_asked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guerdon.gateway.upstream.rewards.LOOK_AGAIN_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "guerdon.gateway")
    async with start_sampler() as sampler, RankingServer(models=("rm",)) as rewards:
        await rewards.stop()
        async with gateway_before(sampler, f"{rewards.target}/rm") as gateway:
            assert any(line.startswith(AWAY) for line in caplog.messages)
            assert (await gateway.http.get("/readyz")).status_code == 200
            await rewards.start()
            while gateway_sees_no_server(rewards):
                body = {"model": "policy", "messages": QUESTION}
                await gateway.http.post("/v1/chat/completions", json=body)
            drawn = sampler.engine.behaviour.tokens
            assert (await refused(gateway))["param"] == "guerdon.model"
            assert sampler.engine.behaviour.tokens == drawn
            assert caplog.messages.count(LOGGED.format("rm")) == 1
            # Revisions are promoted: one that scores, and then one that doesn't.
            rewards.ranks_only = False
            assert await answered(gateway)
            looks = len(rewards.calls)
            assert await answered(gateway)
            assert {call.method for call in rewards.calls[looks:]} == {"Score"}
            rewards.ranks_only = True
            rewards.fail(grpc.StatusCode.FAILED_PRECONDITION, "ranks", times=8, method="Score")
            assert "rm can't rank these answers: ranks" in (await refused(gateway))["message"]
            drawn = sampler.engine.behaviour.tokens
            assert (await refused(gateway))["param"] == "guerdon.model"
            assert sampler.engine.behaviour.tokens == drawn


def gateway_sees_no_server(rewards: RankingServer) -> bool:
    """Whether gRPC has not connected anew yet."""
    return not any(call.method == "GetModel" for call in rewards.calls)
