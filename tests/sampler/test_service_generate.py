"""Generate over a real socket: what comes, what is refused, and what stops the engine."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from tests.support import tools as talk
from tests.support.formula_engine import (
    END,
    HELD_TOKENS,
    MAX_TOKENS,
    VOCABULARY,
    length_of,
    token_of,
)
from tests.support.in_process import details, field_at_fault, until
from tests.support.sampler_service import Harness, item, request, start_sampler
from tests.support.tiny import CHATML, STEP, tiny_tokenizer

from guerdon.client import Conversation
from guerdon.data.conversation_protos import conversation_to_proto
from guerdon.sampler.tokenizer import CheckpointTokenizer
from guerdon.v1 import common_pb2, policy_pb2, policy_pb2_grpc


@pytest.fixture
async def served() -> Any:
    async with start_sampler() as harness:
        yield harness


async def refusal(served: Harness, message: Any, seconds: float = 20) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in served.policy.Generate(message, timeout=seconds):
            pass
    return caught.value


async def test_every_completion_comes_with_what_drew_it(served: Harness) -> None:
    replies = await served.generate(item(7, 8, n=3, id="x", seed=9), item(1, 2, 3, n=2))
    assert sorted((r.item, r.sample) for r in replies) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    for reply in replies:
        prompt = [7, 8] if reply.item == 0 else [1, 2, 3]
        seed = 9 if reply.item == 0 else 0
        length = length_of(prompt, reply.sample)
        expected = [token_of(0, prompt, reply.sample, i, seed) for i in range(length - 1)]
        assert list(reply.token_ids) == [*expected, END]
        assert reply.id == ("x" if reply.item == 0 else "")
        assert list(reply.prompt_token_ids) == prompt
        assert reply.finish_reason == policy_pb2.FINISH_REASON_STOP
        assert [(s.version, s.start, s.end) for s in reply.spans] == [(0, 0, length)]
        assert reply.logprobs == pytest.approx([-math.log(1 + t) for t in reply.token_ids])
        assert reply.text == ""


def test_a_text_keeps_its_special_tokens(tmp_path: Path) -> None:
    words = tiny_tokenizer(chat_template=CHATML)
    words.save_pretrained(tmp_path)
    ids = words(f"Paris {STEP} is", add_special_tokens=False)["input_ids"]
    assert CheckpointTokenizer(tmp_path).decode(np.array(ids, np.int32)) == f"Paris {STEP} is"


async def test_turns_that_the_policy_would_not_see_are_refused_by_name(tmp_path: Path) -> None:
    """By the policy's own chat template, which leaves out system turns and earlier reasoning."""
    forgets = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] != 'system' %}",
    ).replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    assert forgets.count("!= 'system'") == forgets.count("</think>") == 1
    tiny_tokenizer(chat_template=forgets).save_pretrained(tmp_path)
    async with start_sampler(CheckpointTokenizer(tmp_path)) as served:
        for turns, field, reason in (
            ([("human", "Hi")], ".messages[0].role", "'human'"),
            ([("system", "Be brief."), ("user", "Hi")], ".messages[0].content", "'Be brief.'"),
        ):
            error = await refusal(served, request(conversation(*turns)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field_at_fault(details(error)) == f"items[0].prompt.conversation{field}"
            assert reason in error.details()
        assert served.engine.behaviour.drawn == 0
        kept = conversation(("user", "Hi"), ("assistant", "<think>a</think>b"), ("user", "Why?"))
        (reply,) = await served.generate(kept)
        assert reply.token_ids


SHOWS_CALLS = (
    "{{ tools | tojson }}{{ quiet }}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
)


async def test_tools_reach_the_policy_or_are_refused(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "get_weather"}}
    turns = [talk.ASKED[1], talk.CALL]
    asked = Conversation(turns, (tool,), {"quiet": True})
    item = policy_pb2.GenerateItem(
        prompt=common_pb2.Prompt(conversation=conversation_to_proto(asked))
    )
    words = tiny_tokenizer(chat_template=SHOWS_CALLS)
    words.save_pretrained(tmp_path / "shows")
    async with start_sampler(CheckpointTokenizer(tmp_path / "shows")) as served:
        (reply,) = await served.generate(item)
    wanted = words.apply_chat_template(turns, tools=[tool], quiet=True)["input_ids"]
    assert list(reply.prompt_token_ids) == wanted
    for name, inputs, at in (
        ("llama3", {"tools": [talk.WEATHER]}, ".tools[0]"),
        ("llama3", {"chat_template_kwargs": {"thinking": True}}, ".chat_template_kwargs.thinking"),
    ):
        tiny_tokenizer(chat_template=talk.published(name)).save_pretrained(tmp_path / name)
        asked = Conversation(talk.ASKED, **inputs)
        item.prompt.conversation.CopyFrom(conversation_to_proto(asked))
        async with start_sampler(CheckpointTokenizer(tmp_path / name)) as served:
            error = await refusal(served, request(item))
        assert field_at_fault(details(error)) == f"items[0].prompt.conversation{at}"


async def test_lengths_and_text(served: Harness) -> None:
    (reply,) = await served.generate(item(4), max_tokens=2, return_text=True)
    assert reply.finish_reason == policy_pb2.FINISH_REASON_LENGTH
    assert reply.text == " ".join(map(str, reply.token_ids))
    (reply,) = await served.generate(item(4), max_tokens=50, return_text=True)
    assert reply.finish_reason == policy_pb2.FINISH_REASON_STOP
    assert reply.text == " ".join(map(str, reply.token_ids[:-1]))  # without what ended it
    (reply,) = await served.generate(item(*range(1, 251)), max_tokens=500, ignore_eos=True)
    assert len(reply.token_ids) == MAX_TOKENS - 250
    assert reply.finish_reason == policy_pb2.FINISH_REASON_LENGTH


async def test_every_form_of_prompt(served: Harness) -> None:
    turns = common_pb2.Conversation(
        messages=[common_pb2.ChatMessage(role="user", content="a bb ccc")]
    )
    for prompt in (
        common_pb2.Prompt(text="a bb ccc"),
        common_pb2.Prompt(formatted_text="a bb ccc"),
        common_pb2.Prompt(conversation=turns),
    ):
        (reply,) = await served.generate(policy_pb2.GenerateItem(prompt=prompt))
        assert list(reply.prompt_token_ids) == [1, 2, 3]


def with_options(**options: Any) -> policy_pb2.GenerateRequest:
    return request(**options)


def turn(role: str) -> policy_pb2.GenerateItem:
    return conversation((role, "a"))


def conversation(*turns_of: tuple[str, str]) -> policy_pb2.GenerateItem:
    turns = [common_pb2.ChatMessage(role=role, content=text) for role, text in turns_of]
    prompt = common_pb2.Prompt(conversation=common_pb2.Conversation(messages=turns))
    return policy_pb2.GenerateItem(prompt=prompt)


WRONG = {
    "no items": (policy_pb2.GenerateRequest(options={"max_tokens": 1}), "items"),
    "no options": (policy_pb2.GenerateRequest(items=[item()]), "options"),
    "no max_tokens": (with_options(max_tokens=0), "options.max_tokens"),
    "cold": (with_options(temperature=-0.1), "options.temperature"),
    "no temperature": (with_options(temperature=float("nan")), "options.temperature"),
    "too hot": (with_options(temperature=float("inf")), "options.temperature"),
    "no mass": (with_options(top_p=0.0), "options.top_p"),
    "more than all": (with_options(top_p=1.01), "options.top_p"),
    "no top_p": (with_options(top_p=float("nan")), "options.top_p"),
    "top_k": (with_options(top_k=VOCABULARY + 1), "options.top_k"),
    "stop": (with_options(stop_token_ids=[1, VOCABULARY]), "options.stop_token_ids[1]"),
    "many stops": (with_options(stop_token_ids=[1] * 65), "options.stop_token_ids"),
    "no prompt": (request(item(), policy_pb2.GenerateItem()), "items[1].prompt"),
    "empty ids": (
        request(policy_pb2.GenerateItem(prompt={"token_ids": {}})), "items[0].prompt.token_ids.ids"
    ),
    "no such id": (request(item(5, VOCABULARY)), "items[0].prompt.token_ids.ids[1]"),
    "huge id": (request(item(2**32 - 1)), "items[0].prompt.token_ids.ids[0]"),
    "no room": (request(item(*[1] * MAX_TOKENS)), "items[0].prompt"),
    "no words": (request(policy_pb2.GenerateItem(prompt={"text": " "})), "items[0].prompt"),
    "long text": (
        request(policy_pb2.GenerateItem(prompt={"text": "a " * MAX_TOKENS})), "items[0].prompt"
    ),
    "long word": (
        request(policy_pb2.GenerateItem(prompt={"text": "a" * (64 * MAX_TOKENS + 1)})),
        "items[0].prompt",
    ),
    "long turns": (
        request(conversation(*[("user", "a" * 32 * MAX_TOKENS)] * 3)), "items[0].prompt"
    ),
    "no turn": (
        request(policy_pb2.GenerateItem(prompt={"conversation": {}})),
        "items[0].prompt.conversation.messages",
    ),
    "no role": (request(turn("")), "items[0].prompt.conversation.messages[0].role"),
    "template": (request(turn("nobody")), "items[0].prompt.conversation"),
    "n": (request(item(n=257)), "items[0].n"),
    "id": (request(item(id="x" * 300)), "items[0].id"),
    "items": (request(*[item()] * 1025), "items"),
    "more than fits": (request(*[item(n=256)] * 3), "items"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_field_is_named(served: Harness, name: str) -> None:
    message, field = WRONG[name]
    error = await refusal(served, message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert field_at_fault(details(error)) == field
    assert served.engine.behaviour.drawn == 0
    await served.still_serves()
    assert await served.metric('requests_total{code="INVALID_ARGUMENT",method="Generate"}') == 1


async def test_bytes_that_are_no_request(served: Harness) -> None:
    method = served.channel.unary_stream("/guerdon.v1.PolicyService/Generate")
    bad_text = policy_pb2.GenerateRequest(items=[item(id="abc")]).SerializeToString()
    for data, field in (
        (b"\xff\xff", "request"),
        (bad_text.replace(b"abc", b"\xff\xfe\xfd"), "items[0].id"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in method(data):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_at_fault(details(caught.value)) == field
    await served.still_serves()


async def test_older_weights_than_asked_for_are_refused(served: Harness) -> None:
    error = await refusal(served, request(min_version=1))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "the sampler serves version 0, older than 1: publish again"
    await served.publish(1)
    assert len(await served.generate(item(), min_version=1)) == 1


async def test_the_deadline_ends_the_call_and_the_drawing(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    error = await refusal(served, request(item(n=4)), seconds=0.2)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: served.engine.behaviour.aborted == 4)
    await until(lambda: served.server.lifecycle.accepted == 0)
    assert served.engine.running == 0
    assert await served.metric('dropped_total{reason="expired"}') == 4
    assert await served.metric('requests_total{code="DEADLINE_EXCEEDED",method="Generate"}') == 1
    served.engine.behaviour.gate.set()
    await served.still_serves()


async def test_a_caller_who_leaves_stops_the_drawing(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    call = served.policy.Generate(request(item(n=3), item(n=2)))
    await until(lambda: served.engine.running == 5)
    call.cancel()
    await until(lambda: served.engine.behaviour.aborted == 5)
    await until(lambda: served.server.lifecycle.accepted == 0)
    assert await served.metric('dropped_total{reason="cancelled"}') == 5
    served.engine.behaviour.gate.set()
    await served.still_serves()


async def test_a_caller_who_leaves_in_the_middle_gives_the_rest_of_its_room_back() -> None:
    async with start_sampler(max_in_flight=4) as served:
        served.engine.behaviour.held_seed = 9
        held = [i for i in range(4) if length_of([1], i) > HELD_TOKENS]
        assert 0 < len(held) < 4
        call = served.policy.Generate(request(item(1, n=4, seed=9), max_tokens=50))
        assert (await call.read()).sample not in held
        call.cancel()
        await until(lambda: served.server.lifecycle.accepted == 0)
        assert served.engine.behaviour.aborted == len(held)
        assert len(await served.generate(item(n=4))) == 4


@pytest.mark.parametrize("fault", ["fails", "nonfinite", "loses"])
async def test_ok_only_when_all_have_come_and_are_whole(served: Harness, fault: str) -> None:
    setattr(served.engine.behaviour, fault, True)
    error = await refusal(served, request(item(n=3), item(n=2)))
    assert error.code() is grpc.StatusCode.INTERNAL
    said = {
        "fails": "the engine failed",
        "nonfinite": "not a finite number",
        "loses": "ended after",
    }
    assert said[fault] in error.details()
    await until(lambda: served.engine.running == 0)
    setattr(served.engine.behaviour, fault, False)
    await served.still_serves()
    failed = await served.metric('dropped_total{reason="failed"}')
    assert 1 <= failed <= 5


async def test_what_is_no_error_of_ours_reveals_nothing(served: Harness) -> None:
    class Odd:
        def __init__(self, engine: Any) -> None:
            self.info, self.version = engine.info, 0

        async def generate(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("secret path /etc")
            yield

    served.server._sampler._engine = Odd(served.engine)  # type: ignore[assignment]
    error = await refusal(served, request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


async def test_more_than_fits_is_shed_with_a_time_to_come_back() -> None:
    async with start_sampler(max_in_flight=8) as served:
        served.engine.behaviour.gate.clear()
        accepted = asyncio.ensure_future(served.generate(item(n=6)))
        await until(lambda: served.engine.running == 6)
        error = await refusal(served, request(item(n=3)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert details(error).details[0].Unpack(retry)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        second = asyncio.ensure_future(served.generate(item(n=2)))
        await until(lambda: served.engine.running == 8)
        assert await served.metric("shed_total") == 3
        assert await served.metric("running") == 8
        served.engine.behaviour.gate.set()
        assert len(await accepted) == 6
        assert len(await second) == 2
        assert served.server._sampler.admission.held == 0


async def test_who_does_not_read_holds_its_room() -> None:
    """Its completions fill its stream's window and no more of the server's memory."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
    async with (
        start_sampler(max_in_flight=1000) as served,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.ports.port}", options=options) as channel,
    ):
        prompt = [900] * 240  # so a completion is half a KB
        stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        call = stub.Generate(request(*[item(*prompt, n=250)] * 4))
        await until(lambda: served.engine.behaviour.drawn == 1000)
        admission = served.server._sampler.admission
        await asyncio.sleep(0.2)
        held = admission.held
        assert 300 < held <= 1000
        assert len([reply async for reply in call]) == 1000
        await until(lambda: admission.held == 0)


async def test_the_figures(served: Harness) -> None:
    replies = await served.generate(item(1, 2, 3, 4, n=2), item(5, n=1), max_tokens=3)
    await until(lambda: served.server.lifecycle.accepted == 0)
    drawn = sum(len(reply.token_ids) for reply in replies)
    assert await served.metric("generated_tokens_total") == drawn
    assert await served.metric("prompt_tokens_total") == 5
    reasons = [reply.finish_reason for reply in replies]
    lengths = reasons.count(policy_pb2.FINISH_REASON_LENGTH)
    assert await served.metric('completions_total{reason="length"}') == lengths
    assert await served.metric('completions_total{reason="stop"}') == 3 - lengths
    assert await served.metric("generate_seconds_count") == 1
    assert await served.metric("completion_seconds_count") == 3
    assert await served.metric('requests_total{code="OK",method="Generate"}') == 1
    assert await served.metric("engine_up") == 1
    assert await served.metric("limit") == 512


async def test_the_policy_describes_itself(served: Harness) -> None:
    first = await served.policy.GetPolicy(policy_pb2.GetPolicyRequest())
    assert (first.model, first.dtype, first.max_tokens) == ("formula", "float32", MAX_TOKENS)
    assert (first.vocab_size, list(first.eos_token_ids)) == (VOCABULARY, [END])
    assert (first.weight_version, first.weight_sha256, first.limit) == (0, b"", 512)
    assert not first.shared_path
    assert not first.nccl
    assert len(first.instance) == 32
    async with start_sampler() as other:
        second = await other.policy.GetPolicy(policy_pb2.GetPolicyRequest())
    assert second.instance != first.instance
