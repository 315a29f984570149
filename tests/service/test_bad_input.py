"""Whatever comes over the wire: a documented code, the field named, and the server goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.statuses import details

from guerdon.v1 import admin_pb2, common_pb2, reward_pb2

from .conftest import Harness, start_server
from .messages import field_at_fault, item, prompt, response, score_request

Item = reward_pb2.ScoreItem


def nested(part: bytes, times: int, tag: int) -> bytes:
    """A ScoreRequest with one item, whose prompt has one field, made of so many parts."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        return bytes([number]) + size + bytes([length]) + content

    return field(0x12, field(0x12, field(tag, part * times)))


async def refused(call: Any, request: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request, timeout=30)
    return caught.value


LIMITS = {"max_items": 8, "max_responses": 6, "max_total_responses": 20, "max_id_length": 16}

BAD_SCORES = {
    "items": reward_pb2.ScoreRequest(model="m"),
    "items ": score_request(*[item()] * 9),
    "items  ": score_request(*[item("q", *"abcde")] * 5),
    "items[1].prompt": score_request(item(), Item(responses=[response("a")])),
    "items[0].prompt.conversation.messages": score_request(
        Item(
            prompt=common_pb2.Prompt(conversation=common_pb2.Conversation()),
            responses=[response("a")],
        )
    ),
    "items[0].prompt.conversation.messages[1].role": score_request(
        item([("user", "a"), ("", "b")], "c")
    ),
    "items[0].prompt.token_ids.ids": score_request(
        Item(prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds()), responses=[response([1])])
    ),
    "items[0].prompt.token_ids.ids[1]": score_request(item([1, 4_000_000_000], [1])),
    "items[0].prompt.token_ids.ids[2]": score_request(item([1, 2, 1000], [1])),
    "items[0].responses": score_request(Item(prompt=prompt("a"))),
    "items[2].responses": score_request(item(), item(), item("q", *"abcdefg")),
    "items[0].responses[1]": score_request(
        Item(prompt=prompt("a"), responses=[response("a"), common_pb2.Response()])
    ),
    "items[0].responses[0].token_ids": score_request(item("text", [1, 2])),
    "items[0].responses[0].text": score_request(item([1, 2], "text")),
    "items[0].responses[0].token_ids.ids": score_request(item([1, 2], [])),
    "items[0].id": score_request(item(id="x" * 17)),
    "options.priority": score_request(priority=7),
    "options.truncation": score_request(truncation=9),
    "options.activation": score_request(activation=99),
    "model": score_request(model=""),
}


@pytest.mark.parametrize("field", BAD_SCORES)
async def test_the_field_at_fault_is_named(field: str) -> None:
    async with start_server(limits=LIMITS) as served:
        error = await refused(served.rewards.Score, BAD_SCORES[field])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_at_fault(details(error)) == field.strip()
        await served.still_serves()


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt", reward_pb2.RankRequest(model="m", candidates=[response("a")])),
        ("candidates", reward_pb2.RankRequest(model="m", prompt=prompt("a"))),
        (
            "candidates[1].token_ids",
            reward_pb2.RankRequest(
                model="m", prompt=prompt("a"), candidates=[response("a"), response([1])]
            ),
        ),
        (
            "candidates[1].token_ids",
            reward_pb2.RankRequest(
                model="m", prompt=prompt([1]), candidates=[response([1]), response([1001])]
            ),
        ),
        ("model", reward_pb2.RankRequest(prompt=prompt("a"), candidates=[response("a")])),
    ],
)
async def test_ranking_names_candidates(
    served: Harness, field: str, request_: reward_pb2.RankRequest
) -> None:
    error = await refused(served.rewards.Rank, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error)) == field
    await served.still_serves()


async def test_invalid_utf8_names_the_field(served: Harness) -> None:
    good = score_request(item("q", "fine"), item("q", "fine", "marker")).SerializeToString()
    raw: Any = served.channel.unary_unary("/guerdon.v1.RewardService/Score")
    error = await refused(raw, good.replace(b"marker", b"mark\xff\xfe"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error)) == "items[1].responses[1].text"
    await served.still_serves()


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        (b"\x12\x00" * 8_000_000, "request", "more than 250000 fields"),
        (b"\x12\x00" * 8_000_000 + b"\x0a\x01\xff", "request", "more than 250000 fields"),
        # One prompt of many turns, one list of unpacked token ids, one of many fields unknown.
        (nested(b"\x12\x02\x0a\x00", 4_000_000, 0x0A), "request", "more than 250000 fields"),
        (nested(b"\x08\x01", 4_000_000, 0x22), "request", "more than 250000 fields"),
        (b"\x78\x01" * 4_000_000, "request", "more than 250000 fields"),
        (b"\x12\x00" * 80_000, "items", "the limit is 4096"),
        (b"\x12\x00" * 80_000 + b"\x0a\x01\xff", "model", "not valid UTF-8"),
    ],
    ids=["items", "items+text", "turns", "tokens", "unknown", "fewer items", "fewer+text"],
)
async def test_a_message_of_too_many_parts_is_refused_before_it_is_parsed(
    served: Harness, data: bytes, field: str, said: str
) -> None:
    raw: Any = served.channel.unary_unary("/guerdon.v1.RewardService/Score")
    error = await refused(raw, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error)) == field
    assert said in (error.details() or "")
    await served.still_serves()


async def test_a_large_message_is_taken_and_its_bad_text_named(served: Harness) -> None:
    many = [item("q " * 50, *("a " * 20 + str(i) for i in range(40))) for _ in range(100)]
    good = score_request(*many, item("q", "marker")).SerializeToString()
    assert len(good) > 128 * 1024
    raw: Any = served.channel.unary_unary("/guerdon.v1.RewardService/Score")
    await raw(good, timeout=60)
    error = await refused(raw, good.replace(b"marker", b"mark\xff\xfe"))
    assert field_at_fault(details(error)) == "items[100].responses[0].text"


async def test_garbage_is_the_callers_error(served: Harness) -> None:
    raw: Any = served.channel.unary_unary("/guerdon.v1.RewardService/Score")
    error = await refused(raw, b"\x07\x07\x07 garbage")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error)) == "request"
    assert "guerdon.v1.ScoreRequest" in (error.details() or "")
    line = 'guerdon_requests_total{class="online",code="INVALID_ARGUMENT",method="Score",model='
    assert await served.metric(line + '"unknown"}') == 1.0


async def test_a_message_over_the_size_limit() -> None:
    async with start_server(max_message_bytes=20_000) as served:
        error = await refused(served.rewards.Score, score_request(item("x" * 30_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # No RetryInfo: it would not succeed later.
        assert not any(k == "grpc-status-details-bin" for k, _ in error.trailing_metadata() or ())
        await served.still_serves()


async def test_a_request_that_never_fits_the_queue_is_not_told_to_retry() -> None:
    async with start_server(queue={"max_queued_tokens": 64}) as served:
        error = await refused(served.rewards.Score, score_request(item("w " * 300, "a")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "max_queued_tokens" in (error.details() or "")
        await served.still_serves()


async def test_a_response_longer_than_a_batch_is_scored_alone() -> None:
    async with start_server(batching={"max_batch_tokens": 16}) as served:
        long = " ".join("abcdefghijklmnopqrstuvw")
        reply = await served.rewards.Score(score_request(item(), item("q", "a", long)))
        assert [len(each.scores) for each in reply.items] == [1, 2]
        await served.still_serves()


async def test_an_engine_failure_says_nothing_of_the_inside(
    served: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    served.behaviour.fails = True
    error = await refused(served.rewards.Score, score_request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert "the secret of the fake engine" in caplog.text
    served.behaviour.fails = False
    await served.still_serves()


async def test_a_nan_is_an_error_and_counted(served: Harness) -> None:
    served.behaviour.nonfinite = True
    error = await refused(served.rewards.Score, score_request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "not a finite number" in (error.details() or "")
    text = (await served.http.get("/metrics")).text
    assert 'guerdon_nonfinite_scores_total{model="m"' in text
    served.behaviour.nonfinite = False
    await served.still_serves()


DOCUMENTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


async def only_documented(call: Any, data: bytes) -> None:
    try:
        await call(data, timeout=30)
    except grpc.aio.AioRpcError as caught:
        error = caught
    else:
        return
    assert error.code() in DOCUMENTED, error
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        assert field_at_fault(details(error))


METHODS = [
    "/guerdon.v1.RewardService/Score",
    "/guerdon.v1.RewardService/Rank",
    "/guerdon.v1.RewardService/ListModels",
    "/guerdon.v1.RewardService/GetModel",
]
fuzz = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

texts = st.text(max_size=30)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=6)
turns = st.lists(st.builds(common_pb2.ChatMessage, role=texts, content=texts), max_size=3).map(
    lambda m: common_pb2.Conversation(messages=m)
)
prompts = st.one_of(
    st.just(common_pb2.Prompt()),
    texts.map(lambda t: common_pb2.Prompt(text=t)),
    texts.map(lambda t: common_pb2.Prompt(formatted_text=t)),
    turns.map(lambda t: common_pb2.Prompt(conversation=t)),
    ids.map(lambda i: common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=i))),
)
answers = st.one_of(st.just(common_pb2.Response()), texts.map(response), ids.map(response))
options = st.builds(
    reward_pb2.ScoreOptions,
    priority=st.integers(0, 4),
    truncation=st.integers(0, 4),
    activation=st.integers(0, 4),
    normalize=st.booleans(),
)
items = st.builds(
    reward_pb2.ScoreItem, id=texts, prompt=prompts, responses=st.lists(answers, max_size=4)
)
models = st.sampled_from(["m", "m", "m", "alias", "m@12345678", "nobody", ""])
requests = st.builds(
    reward_pb2.ScoreRequest, model=models, items=st.lists(items, max_size=4), options=options
)


@pytest.mark.slow
async def test_random_bytes_get_a_documented_answer(served: Harness) -> None:
    @fuzz
    @given(st.sampled_from(METHODS), st.binary(max_size=200))
    def go(method: str, data: bytes) -> None:
        cases.append((method, data))

    cases: list[tuple[str, bytes]] = []
    await asyncio.to_thread(go)
    for method, data in cases:
        await only_documented(served.channel.unary_unary(method), data)
    await served.still_serves()


@pytest.mark.slow
async def test_random_messages_and_their_ruins_get_a_documented_answer(served: Harness) -> None:
    @fuzz
    @given(requests, st.integers(0, 300), st.binary(max_size=3))
    def go(request: reward_pb2.ScoreRequest, at: int, scrap: bytes) -> None:
        data = request.SerializeToString()
        cases.append(data)
        cases.append(data[:at] + scrap + data[at:])

    cases: list[bytes] = []
    await asyncio.to_thread(go)
    score: Any = served.channel.unary_unary(METHODS[0])
    for data in cases:
        await only_documented(score, data)
    await served.still_serves()


async def test_admin_fields_are_named(served: Harness) -> None:
    load = admin_pb2.LoadModelRequest
    for call, request, field in (
        (served.admin.LoadModel, load(path="x"), "name"),
        (served.admin.LoadModel, load(name="a"), "path"),
        (served.admin.LoadModel, load(name="a@b", path="x"), "name"),
        (served.admin.LoadModel, load(name="../" * 3, path="x"), "name"),
        (served.admin.UnloadModel, admin_pb2.UnloadModelRequest(), "name"),
        (served.admin.PromoteModel, admin_pb2.PromoteModelRequest(name="m"), "revision"),
        (
            served.admin.PromoteModel,
            admin_pb2.PromoteModelRequest(name="m", revision="1234567"),
            "revision",
        ),
        (served.admin.SetAlias, admin_pb2.SetAliasRequest(alias="m", name="m"), "alias"),
        (served.admin.SetAlias, admin_pb2.SetAliasRequest(name="m"), "alias"),
        (served.admin.SetAlias, admin_pb2.SetAliasRequest(alias="a"), "name"),
        (served.admin.DeleteAlias, admin_pb2.DeleteAliasRequest(), "alias"),
    ):
        error = await refused(call, request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, request
        assert field_at_fault(details(error)) == field
    await served.still_serves()
