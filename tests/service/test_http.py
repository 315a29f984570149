"""The HTTP side: JSON twins, JSON errors, probes, metrics, a page that needs no network."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.support.in_process import until

from .conftest import Harness, start_server
from .fake import expected_score, revision_of, words

REVISION = revision_of("first")


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "items": [{"prompt": "a b", "responses": ["c", "d"]}], **changes}


def expected(asked: str, answer: str) -> float:
    return expected_score(REVISION, words(asked) + words(answer))


async def test_score(served: Harness) -> None:
    reply = await served.http.post("/v1/score", json=body())
    assert reply.status_code == 200
    found = reply.json()
    assert [s["score"] for s in found["items"][0]["scores"]] == [
        expected("a b", "c"),
        expected("a b", "d"),
    ]
    assert found["info"]["revision"] == REVISION
    assert found["info"]["activation"] == "none"
    assert found["timing"]["total"] > 0


async def test_every_form_of_prompt(served: Harness) -> None:
    items = [
        {"id": "x", "prompt": [{"role": "user", "content": "a"}], "responses": ["b"]},
        {"prompt": {"token_ids": [1, 2]}, "responses": [{"token_ids": [3]}]},
        {"prompt": {"formatted_text": "a b"}, "responses": [""]},
    ]
    found = (await served.http.post("/v1/score", json=body(items=items))).json()["items"]
    assert [item["id"] for item in found] == ["x", "", ""]
    assert [item["scores"][0]["score"] for item in found] == [
        expected("user a", "b"),
        expected_score(REVISION, [1, 2, 3]),
        expected("a b", ""),
    ]


async def test_rank(served: Harness) -> None:
    asked = {"model": "m", "prompt": "q", "candidates": ["a", "b", "c"], "top_n": 2}
    found = (await served.http.post("/v1/rank", json=asked)).json()
    scores = [expected("q", a) for a in "abc"]
    order = sorted(range(3), key=lambda i: -scores[i])[:2]
    assert [c["index"] for c in found["ranking"]] == order
    assert [c["score"]["score"] for c in found["ranking"]] == [scores[i] for i in order]


async def test_models(served: Harness) -> None:
    found = (await served.http.get("/v1/models")).json()["models"]
    assert [(m["name"], m["revision"], m["current"]) for m in found] == [("m", REVISION, True)]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (body(items=[]), "items"),
        (body(itmes=[]), "itmes"),
        ({"items": []}, "model"),
        (body(model=""), "model"),
        (body(model=7), "model"),
        (body(items=[{"prompt": "a", "responses": []}]), "items[0].responses"),
        (body(items=[{"prompt": "a", "responses": ["b", 3]}]), "items[0].responses[1]"),
        (body(items=[{"prompt": "a", "response": ["b"]}]), "items[0].responses"),
        (body(items=[{"prompt": [], "responses": ["b"]}]), "items[0].prompt"),
        (
            body(items=[{"prompt": [{"role": "user"}], "responses": ["b"]}]),
            "items[0].prompt[0].content",
        ),
        (
            body(items=[{"prompt": {"token_ids": [-1]}, "responses": [{"token_ids": [1]}]}]),
            "items[0].prompt.token_ids[0]",
        ),
        (
            body(items=[{"prompt": {"token_ids": [1], "text": "a"}, "responses": []}]),
            "items[0].prompt.text",
        ),
        (
            body(items=[{"prompt": "a", "responses": [{"token_ids": [1]}]}]),
            "items[0].responses[0]",
        ),
        (body(options={"activation": "softmax"}), "options.activation"),
        (body(options={"priorty": "batch"}), "options.priorty"),
        (body(timeout=0), "timeout"),
        (body(timeout=-1), "timeout"),
        ([1, 2], "body"),
    ],
)
async def test_the_field_at_fault_is_named(served: Harness, asked: Any, field: str) -> None:
    reply = await served.http.post("/v1/score", json=asked)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["field"]) == ("INVALID_ARGUMENT", field)
    assert (await served.http.post("/v1/score", json=body())).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"",
        b"\xff\xfe{}",
        b'{"model": "\\ud800"}',
        b"[" * 50_000,
        b"nope",
        b'{"model": "m", "items": [{"prompt": "\\ud800", "responses": ["a"]}]}',
        b'{"model": ' + b"9" * 6000 + b"}",
    ],
)
async def test_invalid_json_is_400_and_the_server_goes_on(served: Harness, raw: bytes) -> None:
    reply = await served.http.post(
        "/v1/score", content=raw, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert (await served.http.post("/v1/score", json=body())).status_code == 200


async def test_other_errors_as_json(served: Harness) -> None:
    async def error(reply: Any) -> tuple[int, str]:
        return reply.status_code, reply.json()["error"]["code"]

    post = served.http.post
    assert await error(await post("/v1/score", json=body(model="x"))) == (404, "NOT_FOUND")
    unsupported = body(options={"normalize": True})
    found = await error(await post("/v1/score", json=unsupported))
    assert found == (400, "FAILED_PRECONDITION")
    assert await error(await served.http.get("/nothing")) == (404, "NOT_FOUND")
    assert await error(await served.http.get("/v1/score")) == (405, "UNIMPLEMENTED")
    served.behaviour.fails = True
    assert await error(await post("/v1/score", json=body())) == (500, "INTERNAL")


async def test_a_body_over_the_limit_announced_or_not() -> None:
    async with start_server(max_body_bytes=1000) as served:
        large = b'{"model": "' + b"m" * 2000 + b'"}'

        async def chunks() -> Any:
            for at in range(0, len(large), 100):
                yield large[at : at + 100]

        for content in (large, chunks()):
            reply = await served.http.post("/v1/score", content=content)
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert (await served.http.post("/v1/score", json=body())).status_code == 200


async def test_a_timeout_passes_and_costs_no_computation(served: Harness) -> None:
    served.behaviour.gate.clear()
    first = asyncio.ensure_future(served.http.post("/v1/score", json=body()))
    await until(lambda: served.behaviour.batches > 0)
    late = await served.http.post("/v1/score", json=body(timeout=0.05))
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "DEADLINE_EXCEEDED"
    served.behaviour.gate.set()
    assert (await first).status_code == 200
    assert served.behaviour.sequences == 2


async def test_a_caller_who_leaves_takes_its_queued_work_along(served: Harness) -> None:
    served.behaviour.gate.clear()
    first = asyncio.ensure_future(served.http.post("/v1/score", json=body()))
    await until(lambda: served.behaviour.batches > 0)
    second = asyncio.ensure_future(served.http.post("/v1/score", json=body()))
    await served.until_metric('guerdon_queue_items{class="online"}', lambda value: value >= 2)
    second.cancel()
    line = 'guerdon_requests_total{class="online",code="CANCELLED",method="http_score",model="m"}'
    await served.until_metric(line, lambda value: value >= 1)
    served.behaviour.gate.set()
    assert (await first).status_code == 200
    assert served.behaviour.sequences == 2


async def test_probes_follow_the_life_of_the_server(served: Harness) -> None:
    assert (await served.http.get("/healthz")).text == "ok\n"
    ready = await served.http.get("/readyz")
    assert (ready.status_code, ready.text) == (200, "serving\n")
    served.behaviour.gate.clear()
    last = asyncio.ensure_future(served.http.post("/v1/score", json=body()))
    await until(lambda: served.behaviour.batches > 0)
    served.server.lifecycle.start_draining()
    draining = await served.http.get("/readyz")
    assert (draining.status_code, draining.text) == (503, "draining\n")
    assert (await served.http.get("/healthz")).status_code == 200
    refused = await served.http.post("/v1/score", json=body())
    assert refused.status_code == 503
    served.behaviour.gate.set()
    assert (await last).status_code == 200


async def test_the_description_and_its_page_need_no_network(served: Harness) -> None:
    api = (await served.http.get("/openapi.json")).json()
    for path in ("/v1/score", "/v1/rank", "/v1/models", "/healthz", "/readyz", "/metrics"):
        assert path in api["paths"]
        assert all("422" not in method["responses"] for method in api["paths"][path].values())
    assert "ErrorReply" in api["components"]["schemas"]
    for path in ("/v1/score", "/v1/rank"):  # what "Try it" on the page begins with
        content = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        example = content["schema"]["examples"][0]
        assert (await served.http.post(path, json={**example, "model": "m"})).status_code == 200
    page = await served.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page.text)


async def test_metrics_after_traffic(served: Harness) -> None:
    await served.still_serves()
    await served.http.post("/v1/score", json=body())
    reply = await served.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    short = REVISION[:12]
    model = f'model="m",revision="{short}"'
    for line in (
        'guerdon_requests_total{class="online",code="OK",method="Score",model="m"} 1.0',
        'guerdon_requests_total{class="online",code="OK",method="http_score",model="m"} 1.0',
        f'guerdon_queue_seconds_count{{class="online",{model}}} 2.0',
        f'guerdon_tokenize_seconds_count{{class="online",{model}}} 2.0',
        f'guerdon_compute_seconds_count{{class="online",{model}}} 2.0',
        f'guerdon_request_seconds_count{{class="online",{model}}} 2.0',
        f"guerdon_batch_tokens_count{{{model}}} 2.0",
        f"guerdon_batch_sequences_sum{{{model}}} 3.0",
        f"guerdon_computed_tokens_total{{{model}}} 7.0",
        f"guerdon_padding_tokens_total{{{model}}} 0.0",
        f"guerdon_reused_prompt_tokens_total{{{model}}} 2.0",
        f'guerdon_sequences_total{{class="online",{model}}} 3.0',
        f"guerdon_score_count{{{model}}} 3.0",
        'guerdon_queue_tokens{class="online"} 0.0',
        "guerdon_queue_limit_tokens 262144.0",
        f"guerdon_model_packed{{{model}}} 1.0",
        'guerdon_model_loads_total{model="m",outcome="loaded"} 1.0',
        'guerdon_engine_up{engine="0"} 1.0',
    ):
        assert line in reply.text, line
    assert re.search(r"guerdon_engine_busy_seconds_total\{engine=\"0\"\} [0-9.e-]+", reply.text)
    assert re.search(rf'guerdon_model_info{{current="true",.*revision="{short}"}} 1.0', reply.text)
    assert "process_resident_memory_bytes" in reply.text


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b'{"model": 1%s}' % (b"0" * 5000)])
async def test_what_no_parser_reads_is_the_bodys_fault(served: Harness, content: bytes) -> None:
    reply = await served.http.post(
        "/v1/score", content=content, headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["field"] == "body"
    await served.still_serves()
