"""The HTTP side: the same meaning as gRPC, in JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.formula_engine import END, length_of, token_of
from tests.support.in_process import until
from tests.support.sampler_service import Harness, start_sampler


@pytest.fixture
async def served() -> Any:
    async with start_sampler() as harness:
        yield harness


def body(*items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    items = items or ({"prompt": {"token_ids": [7, 8]}},)
    return {"items": list(items), "options": {"max_tokens": 16}, **changes}


async def test_generate_gives_all_completions_in_order(served: Harness) -> None:
    asked = body({"prompt": {"token_ids": [7, 8]}, "n": 3, "id": "x"}, {"prompt": "a bb"})
    reply = await served.http.post("/v1/generate", json=asked)
    assert reply.status_code == 200, reply.text
    found = reply.json()["completions"]
    assert [(c["item"], c["sample"]) for c in found] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    length = length_of([7, 8], 0)
    tokens = [token_of(0, [7, 8], 0, i, 0) for i in range(length - 1)] + [END]
    assert found[0] == {
        "item": 0,
        "id": "x",
        "sample": 0,
        "token_ids": tokens,
        "logprobs": found[0]["logprobs"],
        "finish_reason": "stop",
        "spans": [{"version": 0, "start": 0, "end": length}],
        "text": " ".join(map(str, tokens[:-1])),
        "prompt_token_ids": [7, 8],
    }
    assert len(found[0]["logprobs"]) == length
    assert found[3]["prompt_token_ids"] == [1, 2]
    assert await served.metric('requests_total{code="OK",method="http_generate"}') == 1
    without = await served.http.post("/v1/generate", json=body(return_text=False))
    assert "text" not in without.json()["completions"][0]


async def test_the_policy(served: Harness) -> None:
    await served.publish(4)
    found = (await served.http.get("/v1/policy")).json()
    assert found["weight_version"] == 4
    assert len(found["weight_sha256"]) == 64
    assert found["limit"] == 512


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"options": {"max_tokens": 1}}, "items"),
        ({"items": [], "options": {"max_tokens": 1}}, "items"),
        ({"items": [{"prompt": "a"}]}, "options"),
        (body(options={}), "options.max_tokens"),
        (body(options={"max_tokens": 0}), "options.max_tokens"),
        (body(options={"max_tokens": 1, "temperature": -1}), "options.temperature"),
        (body(options={"max_tokens": 1, "top_p": 0}), "options.top_p"),
        (body(options={"max_tokens": 1, "top_k": -1}), "options.top_k"),
        (body(options={"max_tokens": 1, "stop_token_ids": [-1]}), "options.stop_token_ids[0]"),
        (body(options={"max_tokens": 1, "seed": 1}), "options.seed"),
        (body({"prompt": "a", "n": 0}), "items[0].n"),
        (body({"prompt": "a", "seed": -1}), "items[0].seed"),
        (body({"prompt": {"token_ids": [1000]}}), "items[0].prompt.token_ids.ids[0]"),
        (body({"prompt": {"token_ids": []}}), "items[0].prompt.token_ids"),
        (body({"prompt": "a", "responses": []}), "items[0].responses"),
        (body(min_version=-1), "min_version"),
        (body(timeout=0), "timeout"),
    ],
)
async def test_a_wrong_field_is_named(served: Harness, asked: Any, field: str) -> None:
    reply = await served.http.post("/v1/generate", json=asked)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["field"]) == ("INVALID_ARGUMENT", field)
    await served.still_serves()


async def test_errors_have_their_codes() -> None:
    async with start_sampler(max_in_flight=2) as served:
        old = await served.http.post("/v1/generate", json=body(min_version=3))
        assert (old.status_code, old.json()["error"]["code"]) == (400, "FAILED_PRECONDITION")
        served.engine.behaviour.gate.clear()
        late = await served.http.post("/v1/generate", json=body(timeout=0.1))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
        await until(lambda: served.engine.behaviour.aborted == 1)
        holding = asyncio.ensure_future(
            served.http.post("/v1/generate", json=body({"prompt": "a", "n": 2}))
        )
        await until(lambda: served.engine.running == 2)
        shed = await served.http.post("/v1/generate", json=body())
        assert shed.status_code == 429
        assert int(shed.headers["retry-after"]) >= 1
        served.engine.behaviour.gate.set()
        assert (await holding).status_code == 200


async def test_a_caller_who_leaves_stops_the_drawing(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    call = asyncio.ensure_future(served.http.post("/v1/generate", json=body()))
    await until(lambda: served.engine.running == 1)
    call.cancel()
    await until(lambda: served.engine.behaviour.aborted == 1)
    await until(lambda: served.server.lifecycle.accepted == 0)
    assert await served.metric('dropped_total{reason="cancelled"}') == 1


async def test_the_common_routes(served: Harness) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert (await served.http.get(path)).status_code == 200, path
    routes = (await served.http.get("/openapi.json")).json()["paths"]
    assert {"/v1/generate", "/v1/policy"} <= set(routes)
