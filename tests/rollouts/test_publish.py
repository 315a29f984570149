"""Weights over the wire and by a shared path; lost answers; refusals in plain words."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file
from tests.rollouts.runs import SPECS, weights
from tests.rollouts.support import some_prompts, tokenizer, write_rows

from guerdon.client import Unavailable
from guerdon.client.testing import FakePolicyServer
from guerdon.trainer.common.errors import OutputError, ServiceGone, SettingsError, TrainingError
from guerdon.trainer.common.services.prompts import load_prompts
from guerdon.trainer.common.services.publishing import Publisher, PublishRefused, canary_sequences
from guerdon.trainer.common.services.sampling import GroupSampler


@asynccontextmanager
async def publishing(
    target: str, *, patience: float = 10.0, **options: Any
) -> AsyncIterator[Publisher]:
    sampler = GroupSampler(
        target, tokenizer(), max_tokens=4, temperature=1.0, patience=patience, request_timeout=5.0
    )
    yield Publisher(sampler, **options)
    await sampler.close()


def raw(version: int) -> list[bytes]:
    one = torch.full((4, 2), float(version)).numpy().tobytes()
    return [one, b"\x00\x3f" * 3]  # 0.5 in bfloat16


async def test_weights_and_canaries_travel_whole() -> None:
    async with FakePolicyServer() as server, publishing(server.target) as publisher:
        assert (await publisher.check()).weight_version == 0
        done = await publisher.publish(weights(3), reset=True)
        await publisher.publish(weights(4))
    assert done is not None
    assert (done.version, done.canary_tokens) == (3, 2)
    assert [(update.version, update.reset) for update in server.updates] == [(3, True), (4, False)]
    for update in server.updates:
        assert update.specs == SPECS
        assert list(update.tensors.values()) == raw(update.version)
        assert update.canaries == (([3, 4, 5], [-1.0, -2.0]),)


async def test_a_shared_file_is_whole_and_the_only_one(tmp_path: Path) -> None:
    folder, plain = tmp_path / "shared", tmp_path / "plain"
    plain.touch()
    async with (
        FakePolicyServer() as server,
        publishing(server.target, mode="shared", shared_dir=str(folder)) as publisher,
    ):
        await publisher.check()
        for version in (1, 2):
            await publisher.publish(weights(version), reset=version == 1)
            (file,) = folder.iterdir()
            assert server.updates[-1].path == str(file)
            # The sampler may run as another user: the file is as open as the umask lets it be.
            assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
            policy = await publisher._client.get_policy()
            assert policy.weight_sha256 == hashlib.sha256(b"".join(raw(version))).digest()
            found = load_file(file)
            assert list(found) == ["a.weight", "b.weight"]
            assert (found["a.weight"] == version).all()
        (folder / "else").touch()
        await publisher.close()
    assert [file.name for file in folder.iterdir()] == ["else"]


async def test_modes_that_cannot_be() -> None:
    async with FakePolicyServer() as server:
        with pytest.raises(SettingsError, match="shared_dir must name a folder"):
            async with publishing(server.target, mode="shared"):
                pass
        async with publishing(
            server.target, mode="shared", shared_dir="/dev/null/folder"
        ) as publisher:
            with pytest.raises(OutputError, match="can't write weights to /dev/null/folder"):
                await publisher.publish(weights(1))


async def test_a_refusal_is_told_in_the_samplers_words() -> None:
    async with FakePolicyServer() as server, publishing(server.target) as publisher:
        words = "canaries part: mean difference 0.7 (model.embed_tokens.weight)"
        # More than once: gRPC itself hides the status now and then, when it comes while a
        # message is being sent, and the same update is then sent again.
        server.fail(grpc.StatusCode.FAILED_PRECONDITION, words, times=50, method="UpdateWeights")
        with pytest.raises(PublishRefused) as caught:
            await publisher.publish(weights(5))
        assert str(caught.value) == (
            f"the sampler at {server.target} refuses version 5 of the weights: {words}"
        )
        assert server.version == 0


async def test_a_sampler_that_is_away_is_waited_for_and_then_given_up() -> None:
    async with FakePolicyServer() as server:
        async with publishing(server.target) as publisher:
            await server.stop()
            publish = asyncio.create_task(publisher.publish(weights(1)))
            await asyncio.sleep(0.3)
            await server.start()
            await publish
            assert publisher._patience.faults_survived == 1
            server.fail(grpc.StatusCode.ABORTED, "another update", times=2, method="UpdateWeights")
            await publisher.publish(weights(2))
            assert publisher._patience.faults_survived == 1
        await server.stop()
        async with publishing(server.target, patience=0.3) as publisher:
            with pytest.raises(ServiceGone, match=r"gave no answer for 0\.3 seconds"):
                await publisher.publish(weights(3))


@pytest.mark.parametrize("came", [True, False])
async def test_an_answer_that_is_lost_is_looked_up(came: bool, monkeypatch: Any) -> None:
    async with FakePolicyServer() as server, publishing(server.target) as publisher:
        await publisher.publish(weights(1))
        send, lost = publisher._client.update_weights, []

        async def lose_one(*args: Any, **options: Any) -> Any:
            answer = await send(*args, **options) if came or lost else None
            if not lost:
                lost.append(answer)
                raise Unavailable("the connection broke")
            return answer

        monkeypatch.setattr(publisher._client, "update_weights", lose_one)
        done = await publisher.publish(weights(2))
        assert server.version == 2
        assert [update.version for update in server.updates] == [1, 2]
        assert (done is None) == came


async def test_our_own_fault_is_not_the_samplers() -> None:
    async with FakePolicyServer() as server, publishing(server.target) as publisher:
        wrong = weights(1)
        object.__setattr__(wrong, "tensors", lambda: [torch.zeros(5)])
        with pytest.raises(TrainingError, match=r"a\.weight has 20 bytes, its spec says 32"):
            await publisher.publish(wrong)
        assert server.version == 0


def test_canaries_are_held_out_prompts_spread_over_the_file(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 9)
    found = canary_sequences(prompts, 3)
    for place, ids in zip((0, 4, 8), found, strict=True):
        assert ids.tolist() == prompts.prompt_ids[place].tolist()[:64]
    assert len(canary_sequences(prompts, 99)) == 9
    assert canary_sequences(prompts, 0) == []
    path = write_rows(tmp_path / "one.jsonl", [{"prompt": "a"}])
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(TrainingError, match="no prompt has the two tokens that a canary needs"):
        canary_sequences(load_prompts(path, bare, max_prompt_tokens=9), 4)


async def test_nccl_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    async with (
        FakePolicyServer() as server,
        publishing(server.target, mode="nccl") as publisher,
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SettingsError, match="the trainer has no CUDA GPU"):
            await publisher.check()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(SettingsError, match="takes no such updates"):
            await publisher.check()
