"""The command with the real vLLM on a tiny policy: drawn, updated, refused, ended."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from openai import APIError, AsyncOpenAI, BadRequestError
from safetensors.torch import load_file
from tests.support.sampler import END_SECONDS, engine_processes, running_sampler, wait_gone
from tests.support.sampler_service import item, request
from tests.support.server import RunningServer
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM

from guerdon.v1 import policy_pb2, policy_pb2_grpc

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

RAIN: Any = [{"role": "user", "content": "What is rain?"}]
PROMPT = [5, 6, 7, 8, 9]
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "tiny"
    return tiny_checkpoint(path, "llama", causal_lm=True, head_dim=32)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[RunningServer]:
    with running_sampler(folder, dtype="float32", threads=1, kv_cache_gib=1) as running:
        yield running
        check_end(running)


def check_end(sampler: RunningServer) -> None:
    """At SIGTERM it leaves nothing behind, and has said nothing that nobody could act on."""
    below = engine_processes(sampler)
    assert sampler.stop(END_SECONDS) == 0
    wait_gone(below)
    log = sampler.log()
    assert "Traceback" not in log
    # What vLLM warns of and an operator could act on is still said.
    warned = [line for line in log.splitlines() if re.search(r"WARNING \d\d-\d\d ", line)]
    assert all("LD_PRELOAD" in line for line in warned), log


@pytest.fixture
def policy(sampler: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(sampler.address) as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)


def plain_logprobs(folder: Path, tensors: dict[str, Any], ids: list[int], scale: float) -> Any:
    """Of each token after the first, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict(tensors, strict=False)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1] / scale
    rows = logits.log_softmax(-1)
    return rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


def update(version: int, tensors: dict[str, Any], canary: Any) -> Iterator[Any]:
    make = policy_pb2.UpdateWeightsRequest
    specs = [
        policy_pb2.TensorSpec(name=name, dtype="float32", shape=tensor.shape)
        for name, tensor in tensors.items()
    ]
    stream = policy_pb2.StreamSource()
    yield make(begin=policy_pb2.BeginUpdate(version=version, tensors=specs, stream=stream))
    checksum = hashlib.sha256()
    for place, tensor in enumerate(tensors.values()):
        data = tensor.numpy().tobytes()
        checksum.update(data)
        half = len(data) // 2
        for at, piece in ((0, data[:half]), (half, data[half:])):
            yield make(chunk=policy_pb2.TensorChunk(tensor=place, offset=at, data=piece))
    canaries = [policy_pb2.Canary(token_ids=PROMPT, logprobs=canary)]
    yield make(commit=policy_pb2.CommitUpdate(sha256=checksum.digest(), canaries=canaries))


def check_parity(replies: list[Any], folder: Path, tensors: dict[str, Any], version: int) -> None:
    """What was drawn has the log-probabilities that transformers gives the weights."""
    for reply in replies:
        assert [(s.version, s.start, s.end) for s in reply.spans] == [
            (version, 0, len(reply.token_ids))
        ]
        whole = [*PROMPT, *reply.token_ids]
        expected = plain_logprobs(folder, tensors, whole, TEMPERATURE)[len(PROMPT) - 1 :]
        assert np.abs(np.array(reply.logprobs) - expected).max() < 1e-3


def draw(policy: Any, **fields: Any) -> list[Any]:
    asked = request(item(*PROMPT, n=3, seed=3), temperature=TEMPERATURE, **fields)
    return list(policy.Generate(asked, timeout=60))


def test_the_policy_is_drawn_from_updated_and_kept_from_wrong_weights(
    policy: Any, folder: Path
) -> None:
    old = load_file(folder / "model.safetensors")
    check_parity(draw(policy), folder, old, 0)
    new = {name: tensor * 1.25 for name, tensor in old.items()}
    canary = plain_logprobs(folder, new, PROMPT, 1.0)
    reply = policy.UpdateWeights(update(1, new, canary), timeout=60)
    assert reply.version == 1
    assert reply.canary_tokens == len(PROMPT) - 1
    assert reply.canary_mean_difference < 1e-4
    check_parity(draw(policy, min_version=1), folder, new, 1)
    # A trainer whose own log-probabilities are others than those of what it sent.
    with pytest.raises(grpc.RpcError) as caught:
        policy.UpdateWeights(update(2, old, canary), timeout=60)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "canaries" in caught.value.details()
    found = policy.GetPolicy(policy_pb2.GetPolicyRequest())
    assert (found.weight_version, found.dtype) == (1, "float32")
    check_parity(draw(policy, min_version=1), folder, new, 1)


def test_texts_are_rendered_by_the_policys_own_template(policy: Any) -> None:
    prompt = policy_pb2.GenerateItem(prompt={"text": "What is rain?"})
    (reply,) = policy.Generate(request(prompt, max_tokens=4, return_text=True), timeout=60)
    assert len(reply.prompt_token_ids) > 5
    assert reply.text
    rendered = "<|im_start|>user\nWhat is rain?<|im_end|>\n<|im_start|>assistant\n"
    whole = policy_pb2.GenerateItem(prompt={"formatted_text": rendered})
    (again,) = policy.Generate(request(whole, max_tokens=4), timeout=60)
    assert again.prompt_token_ids == reply.prompt_token_ids


async def test_openais_client_gets_the_same_text_whole_and_streamed(
    sampler: RunningServer, folder: Path
) -> None:
    asked: Any = {"model": folder.name, "messages": RAIN, "n": 2, "seed": 4, "max_tokens": 12}
    async with AsyncOpenAI(base_url=f"{sampler.url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        whole = await create(**asked, logprobs=True, top_logprobs=3)
        texts = [choice.message.content or "" for choice in whole.choices]
        streamed = ["", ""]
        async for chunk in await create(**asked, stream=True):
            (choice,) = chunk.choices
            streamed[choice.index] += choice.delta.content or ""
        assert streamed == texts
        for choice in whole.choices:
            content = choice.logprobs and choice.logprobs.content
            assert content
            assert len(content) <= 12
            for each in content:
                found = [other.logprob for other in each.top_logprobs]
                assert found == sorted(found, reverse=True)
                assert len(found) == 3
                assert each.logprob <= found[0]
        stop = texts[0][2:4]
        short = await create(**asked, stop=stop)
        assert short.choices[0].message.content == texts[0][: texts[0].find(stop)]
        assert (short.choices[0].model_extra or {})["stop_reason"] == stop
        stream = await create(**{**asked, "n": 1}, stop=stop, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said) == texts[0][: texts[0].find(stop)]
        with pytest.raises(BadRequestError, match="messages"):
            await create(**{**asked, "messages": [{"role": "user", "content": "rain " * 9000}]})


async def test_a_stream_goes_on_through_new_weights_and_never_tells_of_refused_ones(
    sampler: RunningServer, policy: Any, folder: Path
) -> None:
    old = load_file(folder / "model.safetensors")
    first = policy.GetPolicy(policy_pb2.GetPolicyRequest()).weight_version
    wrong = plain_logprobs(folder, old, PROMPT, 1.0) - 1.0
    async with AsyncOpenAI(base_url=f"{sampler.url}/v1", api_key="none", max_retries=0) as client:

        async def begin() -> Any:
            stream = await client.chat.completions.create(
                model="", messages=RAIN, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(stream)
            return stream

        stream = await begin()
        canary = plain_logprobs(folder, old, PROMPT, 1.0)
        publish = partial(policy.UpdateWeights, update(first + 1, old, canary), timeout=60)
        assert (await asyncio.to_thread(publish)).version == first + 1
        *_, last = [chunk async for chunk in stream]
        spans = last.choices[0].model_extra["guerdon"]["weight_versions"]
        assert {span["version"] for span in spans} <= {first, first + 1}
        assert spans[-1]["end"] > 50
        stream = await begin()
        publish = partial(policy.UpdateWeights, update(first + 2, old, wrong), timeout=60)
        with pytest.raises(grpc.RpcError, match="canaries"):
            await asyncio.to_thread(publish)
        refusal, versions = "", set()
        try:
            async for chunk in stream:
                told = (chunk.choices[0].model_extra or {}).get("guerdon", {})
                versions |= {span["version"] for span in told.get("weight_versions", ())}
        except APIError as error:
            refusal = str(error)
    if refusal:  # they had begun to draw it
        assert "an update that was refused ended the generation" in refusal
        assert not versions
    else:
        assert versions == {first + 1}
