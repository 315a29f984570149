"""A gateway before an OpenAI-compatible endpoint, and what is passed on to one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from tests.support.in_process import until

from guerdon.client.testing import FakeRewardServer
from guerdon.gateway.types import PolicyRequest, Sampling
from guerdon.gateway.upstream.endpoint import EndpointDrawer
from guerdon.gateway.upstream.openai_api import OpenAIAPI
from guerdon.serving.prompts import FormattedText
from guerdon.settings import SettingsError

from .endpoint import Endpoint, chat_reply, chat_stream, start_endpoint
from .support import QUESTION, openai_client, running_gateway, start_gateway

TEXTS = ["one", "three 3", "two"]
SCORES = {"one": 1.0, "two": 2.0, "three 3": 3.0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def texts(place: int, _body: dict[str, Any]) -> Response:
    return chat_reply(TEXTS[place % 3], tokens=3 + place)


async def asked(
    endpoint: Endpoint, call: Callable[[openai.AsyncOpenAI], Any], **settings: Any
) -> Any:
    """What OpenAI's client is answered by a gateway before an endpoint."""
    async with FakeRewardServer(SCORES, models=("rm",)) as rewards:
        given = {
            "endpoint": endpoint.url,
            "endpoint_model": "theirs",
            "reward": [f"{rewards.target}/rm"],
            **settings,
        }
        async with running_gateway(given) as gateway, openai_client(gateway.http) as client:
            return await call(client)


def chat(model: str = "policy:best-of-3", **fields: Any) -> Callable[[openai.AsyncOpenAI], Any]:
    given = {"model": model, "messages": QUESTION, **fields}
    return lambda client: client.chat.completions.create(**given)


async def test_the_endpoint_gets_the_callers_own_request_once_for_each_candidate(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    async with start_endpoint(texts) as endpoint:
        fields = {"temperature": 0.5, "stop": ["."], "frequency_penalty": 0.25, "seed": 5}
        reply = await asked(endpoint, chat(max_tokens=9, n=2, **fields), endpoint_key_file=key)
    assert [choice.message.content for choice in reply.choices] == ["three 3", "two"]
    assert (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (12, 3 * 4)
    expected = {"model": "theirs", "messages": QUESTION, "max_tokens": 9, **fields}
    bodies = sorted(endpoint.bodies, key=lambda body: body["seed"])
    assert bodies == [{**expected, "seed": 5 + i} for i in range(3)]
    assert set(endpoint.keys) == {"Bearer secret"}
    assert set(endpoint.paths) == {"/v1/chat/completions"}


async def test_what_an_endpoint_says_beside_the_text_comes_too() -> None:
    async with start_endpoint(lambda *_: chat_reply("one", reasoning_content="hm")) as endpoint:
        reply = await asked(endpoint, chat("policy:best-of-1"))
    assert reply.choices[0].message.reasoning_content == "hm"


async def test_a_large_request_is_encoded_once_for_all_candidates() -> None:
    class Watched(OpenAIAPI):
        def __init__(self, url: str) -> None:
            super().__init__(url, key="", model="theirs", ca=None)
            self.encodings = 0
            self.bodies: set[int] = set()

        async def encoded(self, body: Mapping[str, Any]) -> bytes:
            self.encodings += 1
            return await super().encoded(body)

        async def send(self, path: str, parts: Sequence[bytes], deadline: float) -> dict[str, Any]:
            self.bodies.add(id(parts[0]))
            return await super().send(path, parts, deadline)

    body = {"prompt": "ä\ud800" * 100_000, "seed": 5, "max_tokens": 9}  # more than one piece
    sampling = Sampling(max_tokens=9, seed=5, body=body)
    request = PolicyRequest(prompt=FormattedText(""), sampling=sampling)
    answer = {
        "choices": [{"text": "a", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    async with start_endpoint(lambda *_: JSONResponse(answer)) as endpoint:
        api = Watched(endpoint.url)
        drawer = EndpointDrawer(api)
        deadline = time.monotonic() + 60
        drawn = drawer.draw(
            request, range(8), max_tokens=9, deadline=deadline, on_tokens=lambda *_: None
        )
        assert len([draft async for draft in drawn]) == 8
        await drawer.close()
    assert (api.encodings, len(api.bodies)) == (1, 1)
    got = sorted(endpoint.bodies, key=lambda each: each["seed"])
    assert got == [{**body, "model": "theirs", "seed": 5 + i} for i in range(8)]


async def test_of_two_names_for_most_tokens_the_endpoint_gets_one() -> None:
    async with start_endpoint(texts) as endpoint:
        await asked(endpoint, chat(max_tokens=9, max_completion_tokens=7))
        await asked(endpoint, chat(extra_body={"max_completion_tokens": None}))
    most = [{k: v for k, v in body.items() if k.startswith("max_")} for body in endpoint.bodies]
    assert most == [{"max_completion_tokens": 7}] * 3 + [{"max_tokens": 1024}] * 3


async def test_a_candidate_without_text_has_no_score_and_comes_last() -> None:
    def reply(place: int, _body: dict[str, Any]) -> Response:
        return chat_reply(None if place == 0 else TEXTS[place], reasoning_content=f"hm {place}")

    async with start_endpoint(reply) as endpoint:
        found = await asked(endpoint, chat(n=3))
    said = [(c.message.content, c.message.reasoning_content) for c in found.choices]
    assert said == [("three 3", "hm 1"), ("two", "hm 2"), (None, "hm 0")]
    last = found.choices[-1].guerdon
    assert (last["score"], last["reason"]) == (None, "has no text")
    async with start_endpoint(lambda *_: chat_reply(None)) as endpoint:
        with pytest.raises(openai.InternalServerError, match="has no text"):
            await asked(endpoint, chat(), unranked="first")


BROKEN: list[tuple[Response, type[openai.APIStatusError], str]] = [
    (JSONResponse({"error": {"message": "no key"}}, 401), openai.InternalServerError, "401$"),
    (JSONResponse({"error": {"message": "no model"}}, 404), openai.InternalServerError, "404$"),
    (JSONResponse({"error": {"message": "too hot"}}, 400), openai.BadRequestError, "too hot"),
    (JSONResponse({}, 429, {"retry-after": "7"}), openai.RateLimitError, "429"),
    (JSONResponse({}, 500), openai.InternalServerError, "500"),
    (Response("<html>"), openai.InternalServerError, "no JSON"),
    (JSONResponse([]), openai.InternalServerError, "no JSON object"),
    (JSONResponse({"choices": []}), openai.InternalServerError, "lacks a choice"),
    (chat_reply(None), openai.InternalServerError, "no text"),
    (chat_reply("one", tokens=None), openai.InternalServerError, "tokens"),
]


async def test_what_is_no_answer_is_an_error_and_never_a_text() -> None:
    async def all_of_them(client: openai.AsyncOpenAI) -> None:
        for answer, kind, said in BROKEN:
            endpoint.reply = lambda *_, answer=answer: answer
            with pytest.raises(kind, match=said):
                await chat()(client)

    async with start_endpoint(texts) as endpoint:
        await asked(endpoint, all_of_them)


@pytest.mark.parametrize("status", [400, 500])
async def test_the_key_is_in_no_error_and_no_log(
    status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-the-operator")
    said = "x" * 290 + " secret-of-the-operator"  # cut in the middle of the key, were it cut first
    answer = JSONResponse({"error": {"message": said}}, status)
    async with start_endpoint(lambda *_: answer) as endpoint:
        with pytest.raises(openai.APIStatusError) as caught:
            await asked(endpoint, chat(), endpoint_key_file=key)
    assert ("xxx" in str(caught.value)) == (status == 400)
    assert ("xxx" in caplog.text) == (status == 500)
    assert "secret" not in str(caught.value) + caplog.text


ENDS = [
    (b"data: [DONE]\n\n", True),
    (b"data: [DONE]\n", True),
    (b"data: [DONE]", True),
    (b"", False),
    (b"data: {", False),
]


@pytest.mark.parametrize(("end", "whole"), ENDS)
async def test_a_stream_that_is_passed_on_is_whole_with_its_last_event_alone(
    end: bytes, whole: bool
) -> None:
    async def call(client: openai.AsyncOpenAI) -> httpx.Response:
        url = str(client.base_url.copy_with(path="/v1/chat/completions"))
        body = {"messages": QUESTION, "tools": [TOOL], "stream": True}
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(url, json=body)

    def reply(*_: Any) -> Response:
        return Response(b'data: {"choices": []}\n\n' + end, media_type="text/event-stream")

    async with start_endpoint(reply) as endpoint:
        told = (await asked(endpoint, call)).text
    assert told.endswith("data: [DONE]\n\n") == whole
    assert ("broke off before the end" in told) != whole


async def test_leaving_leaves_the_endpoint() -> None:
    async with start_endpoint(texts) as endpoint:
        endpoint.gate.clear()
        calling = asyncio.ensure_future(asked(endpoint, chat()))
        await until(lambda: len(endpoint.bodies) == 3)
        calling.cancel()
        await until(lambda: endpoint.left == 3)
        await asyncio.gather(calling, return_exceptions=True)


async def test_rejection_needs_a_sampler() -> None:
    async with start_endpoint(texts) as endpoint:
        with pytest.raises(openai.BadRequestError, match="takes a Guerdon sampler over gRPC"):
            await asked(endpoint, chat(extra_body={"guerdon": {"strategy": "rejection"}}))
        with pytest.raises(SettingsError, match=r"presets\.fast: .*takes a Guerdon sampler"):
            await asked(endpoint, chat(), presets={"fast": {"strategy": "rejection"}})
    assert endpoint.bodies == []


PASSED = [
    ({"tools": [TOOL], "tool_choice": "required"}, "the request has tools"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, PICTURE]}]},
        "the request has a part of type 'image_url'",
    ),
]


@pytest.mark.parametrize(("fields", "why"), PASSED)
@pytest.mark.parametrize("sampler", [False, True], ids=["endpoint", "sampler"])
async def test_tools_and_pictures_are_passed_on_as_they_are(
    fields: dict[str, Any], why: str, sampler: bool
) -> None:
    body = {"messages": QUESTION, "temperature": 0.25, "unknown": [1], **fields}

    def reply(_place: int, body: dict[str, Any]) -> Response:
        return chat_stream("a", "b") if body.get("stream") else chat_reply("theirs")

    async def both(client: openai.AsyncOpenAI) -> Any:
        whole = await client.post("/chat/completions", body=given, cast_to=object)
        pieces = await client.chat.completions.create(
            model="policy", messages=QUESTION, stream=True, extra_body=body
        )
        return whole, [chunk async for chunk in pieces]

    given = {**body, "model": "policy:best-of-4", "guerdon": {"best_of": 5}}
    async with start_endpoint(reply) as endpoint:
        if sampler:
            settings = {"pass_to": endpoint.url, "endpoint_model": "theirs"}
            async with start_gateway(**settings) as gateway:
                whole, pieces = await both(gateway.openai)
                assert gateway.engine.behaviour.drawn == 0
                assert await gateway.metric('answers_total{ranked="passed",strategy="none"}') == 2
        else:
            whole, pieces = await asked(endpoint, both)
    assert endpoint.bodies[0] == {**body, "model": "theirs", "max_tokens": 1024}
    assert whole["choices"][0]["message"]["content"] == "theirs"
    assert whole["guerdon"]["ranked"] is False
    assert whole["guerdon"]["reason"] == why
    assert [chunk.choices[0].delta.content for chunk in pieces] == ["a", "b"]


async def test_a_stream_that_is_passed_on_ends_with_its_deadline_or_its_caller() -> None:
    body = {"messages": QUESTION, "tools": [TOOL], "stream": True}
    closed = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        try:
            yield b'data: {"choices": []}\n\n'
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def both(client: openai.AsyncOpenAI) -> None:
        url = str(client.base_url.copy_with(path="/v1/chat/completions"))
        async with httpx.AsyncClient(timeout=30) as http:
            late = await http.post(url, json={**body, "guerdon": {"timeout": 0.3}})
            assert late.headers["x-guerdon-ranked"] == "false"
            assert "before the deadline" in late.text
            assert "[DONE]" not in late.text
            await closed.wait()
            closed.clear()
            async with http.stream("POST", url, json=body) as begun:
                assert await anext(begun.aiter_bytes())
            await closed.wait()

    async with start_endpoint(lambda *_: StreamingResponse(stalled())) as endpoint:
        await asked(endpoint, both)


async def test_several_choices_with_tools_are_refused_and_not_cut() -> None:
    async with start_endpoint(texts) as endpoint:
        with pytest.raises(openai.BadRequestError, match="has one choice here"):
            await asked(endpoint, chat(tools=[TOOL], n=2))


async def test_what_is_passed_on_spends_its_callers_tokens() -> None:
    def reply(_place: int, body: dict[str, Any]) -> Response:
        if body["messages"] == []:
            return JSONResponse({}, 500)
        usage = {"usage": {"completion_tokens": 30}} if "stream_options" in body else {}
        return chat_stream("a", **usage) if body.get("stream") else chat_reply("a", tokens=20)

    async def calls(client: openai.AsyncOpenAI) -> None:
        async def ask(most: int | None, **fields: Any) -> None:
            if most is not None:
                fields["max_completion_tokens"] = most
            whole = await chat("policy", tools=[TOOL], **fields)(client)
            if fields.get("stream"):
                assert [chunk async for chunk in whole]

        with pytest.raises(openai.BadRequestError, match="is 101 tokens"):
            await ask(101)
        await ask(100)  # 20 are spent
        with pytest.raises(openai.RateLimitError):
            await ask(81)
        with pytest.raises(openai.InternalServerError):
            await ask(80, messages=[])  # the endpoint's fault costs nothing
        await ask(80, stream=True, stream_options={"include_usage": True})  # 50
        await ask(None, stream=True)  # 90: all of the default, since no usage is told
        with pytest.raises(openai.RateLimitError):
            await ask(11)
        await ask(10)

    spending = {"caller_tokens": 100, "caller_seconds": 1e9}
    async with start_endpoint(reply) as endpoint:
        await asked(endpoint, calls, max_tokens=40, spending=spending)
    assert [body.get("max_tokens") for body in endpoint.bodies] == [None, None, None, 40, None]


@pytest.mark.parametrize(
    "fields", [{"tools": [TOOL]}, {"functions": [TOOL]}, {"prompt": ["a"] * 2}]
)
async def test_texts_with_tools_and_lists_of_texts_are_refused(fields: dict[str, Any]) -> None:
    async def call(client: openai.AsyncOpenAI) -> None:
        body = {"model": "policy", "prompt": "a", "messages": [{"content": [PICTURE]}], **fields}
        with pytest.raises(openai.BadRequestError, match=r"tools: can't|prompt: must be one text"):
            await client.post("/completions", body=body, cast_to=object)

    async with start_endpoint(texts) as endpoint:
        await asked(endpoint, call)
    assert endpoint.bodies == []


CONTINUED: list[dict[str, Any]] = [
    {"echo": True},
    {"suffix": "b"},
    {"continue_final_message": True},
    {"add_generation_prompt": False},
    {"documents": [{"text": "b"}]},
    {"chat_template": "b"},
    {"truncate_prompt_tokens": 1},
    {"prompt_embeds": "b"},
]


async def test_what_lets_the_policy_continue_another_prompt_is_refused() -> None:
    async def all_of_them(client: openai.AsyncOpenAI) -> None:
        for fields in CONTINUED:
            with pytest.raises(openai.BadRequestError, match=f"{next(iter(fields))}: is not done"):
                await chat(extra_body=fields)(client)

    async with start_endpoint(texts) as endpoint:
        await asked(endpoint, all_of_them)
    assert endpoint.bodies == []


async def test_tools_with_nowhere_to_go_are_refused() -> None:
    async with start_gateway() as gateway:
        with pytest.raises(openai.BadRequestError, match="--pass-to"):
            await gateway.chat(tools=[TOOL])
