"""What a sampler may say of itself, and what it may answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tests.rollouts.support import tokenizer
from tests.support.tiny import STEP, TURN_END

from guerdon.client.policy_types import Completion, VersionSpan
from guerdon.client.testing import FakePolicyServer
from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.sampling import GroupSampler, StaleSampler, sampling_seed
from guerdon.trainer.common.services.types import PromptRow, Task

TASK = Task(7, PromptRow(0, ({"role": "user", "content": "?"},)), np.array([8, 9], dtype=np.int32))


@asynccontextmanager
async def sampling(server: FakePolicyServer) -> AsyncIterator[GroupSampler]:
    sampler = GroupSampler(
        server.target, tokenizer(), max_tokens=6, temperature=0.7, patience=5.0, request_timeout=5.0
    )
    yield sampler
    await sampler.close()


async def test_a_group_is_what_was_drawn_and_never_tokenised_again() -> None:
    ids = tokenizer()("Paris  is\n", add_special_tokens=False)["input_ids"]
    end = tokenizer().convert_tokens_to_ids(TURN_END)

    def policy(prompt: Sequence[int], seed: int | None, sample: int) -> Any:
        drawn = [*ids[:4], end] if sample else ids[:6]
        return drawn, [-0.5 - i for i in range(len(drawn))]

    async with FakePolicyServer(policy, eos=end) as server, sampling(server) as sampler:
        group = await sampler.sample(TASK, 2, min_version=0, seed=11)
    (first, second) = group.samples
    assert [s.index for s in group.samples] == [0, 1]
    assert first.response_ids_T.tolist() == ids[:6]
    assert (first.finished, second.finished) == (False, True)
    assert second.response_ids_T[-1] == end  # it is trained on, and decides where the reward goes
    assert second.text == tokenizer().decode(ids[:4])
    assert second.behaviour_logprobs_T.tolist() == [-0.5, -1.5, -2.5, -3.5, -4.5]
    assert {s.versions_T.dtype for s in group.samples} == {np.dtype(np.int32)}
    assert all(np.isnan(s.reward) for s in group.samples)
    (call,) = [message for method, message in server.calls if method == "Generate"]
    assert list(call.items[0].prompt.token_ids.ids) == [8, 9]
    assert (call.items[0].seed, call.options.temperature, call.options.max_tokens) == (11, 0.7, 6)


async def test_special_tokens_that_were_drawn_are_part_of_the_text() -> None:
    words = tokenizer()
    end, step = (words.convert_tokens_to_ids(token) for token in (TURN_END, STEP))
    ids = [*words("Paris", add_special_tokens=False)["input_ids"][:3], step]

    def policy(prompt: Sequence[int], seed: int | None, sample: int) -> Any:
        drawn = [*ids, end] if sample else [end, *ids]
        return drawn, [-0.5] * len(drawn)

    task = Task(TASK.uid, TASK.row, TASK.prompt_ids_P, "<think>\n")
    async with FakePolicyServer(policy, eos=-1) as server, sampling(server) as sampler:
        cut = (await sampler.sample(task, 1, min_version=0)).samples[0]
    async with FakePolicyServer(policy, eos=end) as server, sampling(server) as sampler:
        ended = (await sampler.sample(task, 2, min_version=0)).samples[1]
    said = words.decode(ids)
    assert said.endswith(STEP)
    assert (cut.finished, cut.text) == (False, f"<think>\n{TURN_END}{said}")
    assert (ended.finished, ended.text) == (True, f"<think>\n{said}")


async def test_old_weights_are_told_apart_from_refusals() -> None:
    async with FakePolicyServer() as server, sampling(server) as sampler:
        with pytest.raises(StaleSampler):
            await sampler.sample(TASK, 2, min_version=1)
        server.fail(grpc.StatusCode.INVALID_ARGUMENT, "options.max_tokens: is wrong")
        with pytest.raises(ServiceRefused, match=r"options\.max_tokens: is wrong"):
            await sampler.sample(TASK, 2, min_version=0)


async def test_a_sampler_that_cannot_take_the_prompts_is_refused_before_the_run() -> None:
    async with FakePolicyServer() as server, sampling(server) as sampler:
        policy = await sampler.check(0, 100, 99)
        with pytest.raises(TrainingError, match="serves version 0, older than the 1"):
            await sampler.check(1, 100, 99)
        with pytest.raises(SettingsError, match=r"the longest prompt has .*, and max_tokens is 6"):
            await sampler.check(0, policy.max_tokens - 5, 99)
        with pytest.raises(SettingsError, match="it serves another policy"):
            await sampler.check(0, 100, policy.vocab_size)


GOOD = Completion(
    item=0,
    sample=0,
    id="",
    token_ids=np.array([5, 6], dtype=np.int32),
    logprobs=np.array([-1, -2], dtype=np.float32),
    finish_reason="stop",
    spans=(VersionSpan(2, 0, 2),),
    text="",
    prompt_token_ids=np.array([8, 9], dtype=np.int32),
)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"token_ids": np.arange(3, 10), "logprobs": -np.ones(7), "spans": (VersionSpan(2, 0, 7),)},
         "7 tokens, where 1 to 6"),
        ({"token_ids": np.array([], dtype=np.int32)}, "0 tokens"),
        ({"logprobs": np.array([-1.0])}, "differ in number"),
        ({"spans": (VersionSpan(2, 0, 1),)}, "differ in number"),
        ({"logprobs": np.array([-1.0, np.nan])}, "not a finite number up to 0"),
        ({"logprobs": np.array([-1.0, 0.5])}, "not a finite number up to 0"),
        ({"spans": (VersionSpan(1, 0, 1), VersionSpan(2, 1, 2))}, "version 1, where at least 2"),
        ({"prompt_token_ids": np.array([8, 8])}, "its prompt is not the one"),
        ({"sample": 1}, r"completions \[1\] where 1"),
    ],
)  # fmt: skip
async def test_what_cannot_be_right_is_refused(changes: dict[str, Any], fault: str) -> None:
    async with FakePolicyServer() as server, sampling(server) as sampler:
        sampler._group(TASK, 1, 2, [GOOD])
        with pytest.raises(TrainingError, match=fault):
            sampler._group(TASK, 1, 2, [replace(GOOD, **changes)])


def test_seeds_differ_for_every_use() -> None:
    seeds = {
        sampling_seed(seed, stream, uid)
        for seed in range(5)
        for stream in range(5)
        for uid in range(40)
    }
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sampling_seed(1, 2, 3) == sampling_seed(1, 2, 3)
