"""OpenAI's API on the sampler, asked by OpenAI's own client over sockets."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.support.formula_engine import (
    MAX_TOKENS,
    length_of,
    logprob_of,
    text_of,
    tokens_of,
)
from tests.support.in_process import until
from tests.support.sampler_service import Harness, start_sampler

from guerdon.serving.openai.bodies import NEUTRAL, ChatBody, CompletionBody

RAIN: Any = [{"role": "user", "content": "What is rain"}]
IDS = [4, 2, 4]
"""Its tokens: the lengths of its words."""


@pytest.fixture
async def served() -> AsyncIterator[Harness]:
    async with start_sampler() as harness:
        yield harness


@pytest.fixture
async def client(served: Harness) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(served) as found:
        yield found


def client_of(served: Harness, key: str = "none") -> openai.AsyncOpenAI:
    url = str(served.http.base_url) + "/v1"
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)


async def test_chat_completions(served: Harness, client: openai.AsyncOpenAI) -> None:
    await served.publish(7, bytes(38))
    found = await client.chat.completions.create(
        model="formula", messages=RAIN, n=3, seed=5, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for choice in found.choices:
        tokens = tokens_of(IDS, choice.index, seed=5)
        assert choice.message.content == text_of(tokens)
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        assert [each.token for each in content] == list(map(str, tokens))
        assert [each.logprob for each in content] == pytest.approx(
            [logprob_of(token, 1.0) for token in tokens]
        )
        assert [[other.token for other in each.top_logprobs] for each in content] == [
            [str(token), str(token + 1)] for token in tokens
        ]
        spans = [{"version": 7, "start": 0, "end": len(tokens)}]
        assert choice.model_extra == {"guerdon": {"weight_versions": spans}, "stop_reason": None}
    assert found.usage is not None
    drawn = sum(length_of(IDS, i) for i in range(3))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(IDS), drawn)
    assert found.system_fingerprint == "weights-7"
    assert found.model_extra == {"guerdon": {"weight_version": 7}}
    raw = await client.chat.completions.with_raw_response.create(model="", messages=RAIN)
    assert raw.headers["x-guerdon-weight-version"] == "7"


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_tells_what_the_whole_answer_does(
    client: openai.AsyncOpenAI, n: int
) -> None:
    asked: Any = {"model": "formula", "messages": RAIN, "n": n, "seed": 9, "logprobs": True}
    whole = await client.chat.completions.create(**asked)
    texts, ends, logprobs, usage = [""] * n, [""] * n, [[] for _ in range(n)], None  # type: ignore[var-annotated]
    chunks = 0
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        chunks += 1
        usage = chunk.usage
        for choice in chunk.choices:
            if not texts[choice.index] and not ends[choice.index]:
                assert choice.delta.role == "assistant"
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason or ""
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.content or []
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == ["stop"] * n
    assert logprobs == [(c.logprobs and c.logprobs.content) for c in whole.choices]
    assert usage == whole.usage
    assert chunks > 2 * n  # a token each, not the whole at once


async def test_text_completions_of_several_prompts(client: openai.AsyncOpenAI) -> None:
    prompts: list[Any] = [["a bb", "ccc"], [[7, 8], [9]]]
    ids = [[[1, 1, 2], [1, 3]], [[7, 8], [9]]]  # texts begin with the tokenizer's own token
    for prompt, expected in zip(prompts, ids, strict=True):
        found = await client.completions.create(
            model="formula", prompt=prompt, n=2, logprobs=1, extra_body={"return_token_ids": True}
        )
        wanted = [tokens_of(one, sample) for one in expected for sample in range(2)]
        # They go on with the prompt: the words of this tokenizer have a space between them.
        assert [choice.text for choice in found.choices] == [f" {text_of(one)}" for one in wanted]
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        logprobs = found.choices[1].logprobs
        assert logprobs is not None
        assert logprobs.tokens == list(map(str, wanted[1]))
        assert logprobs.text_offset is not None
        assert logprobs.text_offset[:2] == [0, len(str(wanted[1][0]))]
        assert (found.choices[3].model_extra or {})["token_ids"] == wanted[3]
        prompts_told = [(c.model_extra or {})["prompt_token_ids"] for c in found.choices]
        assert prompts_told == [one for one in expected for _ in range(2)]
    stream = await client.completions.create(model="formula", prompt="a bb", stream=True)
    said = [chunk.choices[0].text async for chunk in stream]
    assert "".join(said) == f" {text_of(tokens_of([1, 1, 2], 0))}"
    assert len(said) > 2


async def test_what_ends_a_completion_is_no_part_of_it(client: openai.AsyncOpenAI) -> None:
    first, second, *_ = map(str, tokens_of(IDS, 0))
    asked: Any = {"model": "formula", "messages": RAIN}
    for stop in (second, [second[:2], "never"]):
        whole = await client.chat.completions.create(**asked, stop=stop)
        assert whole.choices[0].message.content == f"{first} "
        assert whole.choices[0].finish_reason == "stop"
        assert (whole.choices[0].model_extra or {})["stop_reason"] == (
            stop if isinstance(stop, str) else stop[0]
        )
        stream = await client.chat.completions.create(**asked, stop=stop, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said) == f"{first} "
    short = await client.chat.completions.create(**asked, max_completion_tokens=1)
    assert short.choices[0].message.content == first
    assert short.choices[0].finish_reason == "length"
    long = await client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    assert long.usage is not None
    assert long.usage.total_tokens == MAX_TOKENS  # all the room that there is


async def test_models(client: openai.AsyncOpenAI) -> None:
    (model,) = (await client.models.list()).data
    assert (model.id, (model.model_extra or {})["max_model_len"]) == ("formula", MAX_TOKENS)
    assert await client.models.retrieve("formula") == model


async def test_a_name_of_ones_own() -> None:
    named = start_sampler(model="/some/where/policy", served_name="tiny")
    async with named as served, client_of(served) as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny"]
        found = await client.chat.completions.create(model="tiny", messages=RAIN)
        assert found.model == "tiny"
        with pytest.raises(openai.NotFoundError, match="'policy'"):
            await client.chat.completions.create(model="policy", messages=RAIN)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"extra_body": {"timeout": -1}}, "timeout"),
    ],
)
async def test_a_wrong_field_is_named(
    served: Harness, client: openai.AsyncOpenAI, changes: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        asked = {"model": "formula", "messages": RAIN, "stream": stream, **changes}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked)
        assert (caught.value.param or "").startswith(param)
    assert served.engine.behaviour.drawn == 0


async def test_a_value_of_the_wrong_kind_is_told_which_kinds_there_are(
    client: openai.AsyncOpenAI,
) -> None:
    stop: Any = [1]
    with pytest.raises(openai.BadRequestError, match="stop: must be a text or a list of texts"):
        await client.chat.completions.create(model="formula", messages=RAIN, stop=stop)


async def test_neutral_values_and_unknown_keys_change_nothing(client: openai.AsyncOpenAI) -> None:
    neutral: Any = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "user": "somebody",
        "extra_body": {"repetition_penalty": 1.0, "top_k": -1, "anything": [1], "min_p": None},
    }
    found = await client.chat.completions.create(model="formula", messages=RAIN, **neutral)
    assert found.choices[0].message.content == text_of(tokens_of(IDS, 0))


async def test_a_caller_who_leaves_stops_the_drawing(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    for stream in (False, True):
        before = served.engine.behaviour.aborted
        asking = asyncio.create_task(
            served.http.post(
                "/v1/chat/completions", json={"messages": RAIN, "n": 2, "stream": stream}
            )
        )
        await until(lambda: served.engine.running == 2)
        asking.cancel()
        await until(lambda: served.engine.behaviour.aborted == before + 2)  # noqa: B023
    served.engine.behaviour.gate.set()
    await served.still_serves()


async def test_a_caller_who_leaves_a_stream_stops_the_drawing(
    served: Harness, client: openai.AsyncOpenAI
) -> None:
    served.engine.behaviour.seconds_per_token = 0.001
    stream = await client.chat.completions.create(
        model="formula", messages=RAIN, stream=True, extra_body={"ignore_eos": True}
    )
    assert (await anext(stream)).choices[0].delta.content
    served.engine.behaviour.gate.clear()
    await stream.close()
    await until(lambda: served.engine.behaviour.aborted == 1)
    served.engine.behaviour.gate.set()
    line = 'requests_total{code="CANCELLED",method="http_chat_completions"}'
    while not await served.metric(line):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await served.still_serves()


async def test_an_engine_that_fails_is_an_error_and_never_a_text(
    served: Harness, client: openai.AsyncOpenAI
) -> None:
    behaviour = served.engine.behaviour
    asked: Any = {"model": "formula", "messages": RAIN, "extra_body": {"ignore_eos": True}}
    behaviour.fails = True
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="the engine failed"):
            await client.chat.completions.create(**asked, stream=stream)
    behaviour.fails, behaviour.seconds_per_token = False, 0.001
    begun = await client.chat.completions.create(**asked, stream=True)
    assert (await anext(begun)).choices[0].delta.content
    behaviour.fails = True
    with pytest.raises(openai.APIError, match="the engine failed"):
        _ = [chunk async for chunk in begun]


async def test_weights_that_change_within_an_answer_are_told(
    served: Harness, client: openai.AsyncOpenAI
) -> None:
    served.engine.behaviour.seconds_per_token = 0.001
    stream = await client.chat.completions.create(
        model="formula", messages=RAIN, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(stream)
    await served.publish(3)
    *_, last = [chunk async for chunk in stream]
    first, second = (last.choices[0].model_extra or {})["guerdon"]["weight_versions"]
    assert (first["version"], second["version"]) == (0, 3)
    assert first["end"] == second["start"] > 0


async def test_a_deadline_and_overload_have_their_codes(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    for stream in (False, True):
        asked = {"messages": RAIN, "timeout": 0.05, "stream": stream}
        reply = await served.http.post("/v1/chat/completions", json=asked)
        assert reply.status_code == 504
    served.engine.behaviour.gate.set()
    async with start_sampler(max_in_flight=4) as small:
        small.engine.behaviour.gate.clear()
        asked = {"messages": RAIN, "n": 4}
        held = asyncio.create_task(small.http.post("/v1/chat/completions", json=asked))
        await until(lambda: small.engine.running == 4)
        async with client_of(small) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="formula", messages=RAIN)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        small.engine.behaviour.gate.set()
        assert (await held).status_code == 200


async def test_a_token_is_wanted_before_the_body(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("for-sampling")
    async with start_sampler(token_file=token) as served:
        async with client_of(served, "wrong") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.chat.completions.create(model="formula", messages=RAIN)
            assert caught.value.body.keys() == {"message", "type", "param", "code"}  # type: ignore[attr-defined]
            native = await served.http.post("/v1/generate", json={})
            assert native.json()["error"]["code"] == "UNAUTHENTICATED"
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with client_of(served, "for-sampling") as client:
            assert (await client.chat.completions.create(model="", messages=RAIN)).choices


async def test_a_stream_is_of_server_sent_events(served: Harness) -> None:
    asked = {"messages": RAIN, "stream": True}
    async with served.http.stream("POST", "/v1/chat/completions", json=asked) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        lines = [line async for line in reply.aiter_lines() if line]
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert lines[-1] == "data: [DONE]"


async def test_bodies_that_are_no_requests(served: Harness) -> None:
    post = served.http.post
    for content, kind, code in (
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"{}", "text/plain", 400),
        (b"{}", "application/json", 400),
    ):
        reply: httpx.Response = await post(
            "/v1/completions", content=content, headers={"content-type": kind}
        )
        assert reply.status_code == code
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_more_log_probabilities_than_an_answer_may_tell_are_refused() -> None:
    async with start_sampler(limits={"max_logprobs": 100}) as served, client_of(served) as client:
        asked: Any = {"model": "", "messages": RAIN, "logprobs": True, "top_logprobs": 4}
        assert (await client.chat.completions.create(**asked, max_tokens=20)).choices
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked, max_tokens=21)
        assert caught.value.param == "logprobs"


async def test_tokens_by_their_number(client: openai.AsyncOpenAI) -> None:
    found = await client.chat.completions.create(
        model="",
        messages=RAIN,
        logprobs=True,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    )
    tokens = tokens_of(IDS, 0)
    content = (found.choices[0].logprobs and found.choices[0].logprobs.content) or []
    assert [each.token for each in content] == [f"token_id:{token}" for token in tokens]
    assert (found.model_extra or {})["prompt_token_ids"] == IDS
    stream = await client.chat.completions.create(
        model="", messages=RAIN, stream=True, extra_body={"return_token_ids": True}
    )
    chunks = [chunk async for chunk in stream]
    told = [(chunk.model_extra or {}).get("prompt_token_ids") for chunk in chunks]
    assert told == [IDS] + [None] * (len(chunks) - 1)
    parts = [(chunk.choices[0].model_extra or {}).get("token_ids") or [] for chunk in chunks]
    assert [token for part in parts for token in part] == tokens


async def test_a_caller_with_few_tokens_gets_as_many_as_it_may(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        '[callers.app]\ntoken = "app-token-0123456789"\nroles = ["sample"]\nmax_tokens = 8\n'
    )
    async with (
        start_sampler(tokens=file) as served,
        client_of(served, "app-token-0123456789") as client,
    ):
        found = await client.chat.completions.create(
            model="", messages=RAIN, n=2, extra_body={"ignore_eos": True}
        )
        assert found.usage is not None
        assert found.usage.completion_tokens == 8


@pytest.mark.parametrize("path", ["/v1/models%0A", "/v1/policy%0A", "/v1/chat/completions%0A"])
async def test_a_path_that_ends_in_a_newline_is_no_way_around_a_token(
    tmp_path: Path, path: str
) -> None:
    token = tmp_path / "token"
    token.write_text("for-sampling")
    async with start_sampler(token_file=token) as served:
        for method in ("GET", "POST"):
            assert (await served.http.request(method, path)).status_code == 404


def test_every_field_of_vllms_requests_is_read_refused_or_means_nothing_here() -> None:
    """A field that changes completions and is ignored would be a silent lie."""
    pytest.importorskip("vllm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what vLLM imports
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    known = {*ChatBody.model_fields, *CompletionBody.model_fields, *NEUTRAL, *MEANINGLESS}
    fields = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert fields <= known


MEANINGLESS = {
    "user", "parallel_tool_calls", "priority", "request_id", "cache_salt", "include_reasoning",
    "kv_transfer_params", "ec_transfer_params", "session_id", "routed_experts_prompt_start",
    "truncation_side", "stream_interval", "media_io_kwargs", "mm_processor_kwargs", "mm_payload",
    "return_mm_kwargs",
}  # fmt: skip
"""They change neither what is drawn nor what is told here."""
