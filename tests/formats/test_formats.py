"""Requests in other systems' formats get the scores of the native API, in each system's shape."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import ANSWER, LABEL, PROMPT, QUESTION, WHOLE, Formats

DOCUMENTS = ["Rain.", ANSWER, "Mud"]
RECORDED = [
    json.loads(line) for line in Path(__file__).with_name("recorded.jsonl").read_text().splitlines()
]


def close(value: float) -> Any:
    return pytest.approx(value, abs=1e-4)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(
    "request_", RECORDED, ids=lambda r: f"{r['client'].split(' ')[0] or 'tei'}-{r['path']}"
)
def test_recorded_requests_are_answered(formats: Formats, request_: dict[str, str]) -> None:
    """Byte for byte what unmodified clients sent."""
    answer = formats.http.post(
        request_["path"],
        content=request_["body"],
        headers={"content-type": "application/json", "user-agent": request_["client"]},
    )
    assert answer.status_code == 200, answer.text
    numbers = _numbers(answer.json())
    assert request_["path"].endswith("seed_session") or numbers
    assert all(math.isfinite(number) for number in numbers)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in _numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in _numbers(each)]
    if isinstance(value, str):
        return [1.0] if value.endswith("==") else []
    return [float(value)] if isinstance(value, int | float) and value is not True else []


def test_openrlhf(formats: Formats) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    body = {"query": [WHOLE], "prompts": [PROMPT], "labels": [None]}
    assert formats.post("/get_reward", body) == {
        "rewards": [close(score)],
        "scores": [close(sigmoid(score))],
        "extra_logs": {"reward": [close(score)]},
    }


def test_openrlhf_sends_empty_lists_to_all_urls_but_one(formats: Formats) -> None:
    body: dict[str, list[str]] = {"query": [], "prompts": [], "labels": []}
    assert formats.post("/get_reward", body)["rewards"] == []


def test_slime(formats: Formats) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    for prompt in (QUESTION, PROMPT, messages):
        assert formats.post("/rm", {"prompt": prompt, "response": ANSWER}) == close(score)


def test_nemo_gym(formats: Formats) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    part = {"type": "output_text", "text": ANSWER, "annotations": []}
    body = {
        "responses_create_params": {"input": [{"role": "user", "content": QUESTION}]},
        "response": {
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [part]},
            ]
        },
        "verifier_metadata": {"kept": 1},
    }
    assert formats.post("/nemo_gym/verify", body) == {**body, "reward": close(score)}


@pytest.mark.parametrize("raw", [True, False])
def test_vllm_classify(formats: Formats, raw: bool) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
    ]
    for asked in ({"input": WHOLE}, {"input": [WHOLE]}, {"messages": messages}):
        reply = formats.post(
            "/classify", {"model": "tiny", **asked, "use_activation": False if raw else None}
        )
        expected = close(score if raw else sigmoid(score))
        entry = {"index": 0, "label": LABEL, "probs": [expected], "num_classes": 1}
        assert reply["data"] == [entry]
        assert (reply["object"], reply["model"]) == ("list", "tiny")
        assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 10


def test_vllm_pooling_takes_token_ids(formats: Formats) -> None:
    ids = [5, 40, 41, 42, 6]
    items = [{"prompt": {"token_ids": ids[:-1]}, "responses": [{"token_ids": ids[-1:]}]}]
    native = formats.post("/v1/score", {"model": "tiny", "items": items})
    score = native["items"][0]["scores"][0]["score"]
    for asked in (ids, [ids]):
        reply = formats.post("/pooling", {"input": asked})
        assert reply["data"] == [{"index": 0, "object": "pooling", "data": [close(score)]}]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_vllm_score(formats: Formats, path: str) -> None:
    scores = formats.native(QUESTION, *DOCUMENTS)
    for names in (
        ("text_1", "text_2"),
        ("queries", "documents"),
        ("queries", "items"),
        ("data_1", "data_2"),
    ):
        reply = formats.post(path, dict(zip(names, (QUESTION, DOCUMENTS), strict=True)))
        assert [entry["score"] for entry in reply["data"]] == [close(sigmoid(s)) for s in scores]
    pairs = formats.post(path, {"text_1": [QUESTION, "b"], "text_2": ["Rain.", "c"]})["data"]
    expected = [scores[0], *formats.native("b", "c")]
    assert [entry["score"] for entry in pairs] == [close(sigmoid(score)) for score in expected]


def test_vllm_reads_raw_scores_where_asked(formats: Formats) -> None:
    scores = formats.native(QUESTION, *DOCUMENTS)
    asked = {"query": QUESTION, "documents": DOCUMENTS, "use_activation": False}
    found = {r["index"]: r["relevance_score"] for r in formats.post("/rerank", asked)["results"]}
    assert found == {place: close(score) for place, score in enumerate(scores)}
    (score,) = formats.native(QUESTION, ANSWER)
    reply = formats.post("/pooling", {"input": WHOLE, "use_activation": True})
    assert reply["data"][0]["data"] == [close(sigmoid(score))]


def test_what_is_null_is_left_out(formats: Formats) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    body = {"query": [WHOLE], "prompts": None, "labels": None}
    assert formats.post("/get_reward", body)["rewards"] == [close(score)]
    assert formats.post("/predict", {"inputs": [QUESTION, ANSWER], "truncate": None})


def test_sglang(formats: Formats) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    one = formats.post("/classify", {"text": WHOLE})
    assert one["embedding"] == [close(score)]
    two = formats.post("/classify", {"text": [WHOLE, PROMPT]})
    assert two[0]["embedding"] == [close(score)]
    reply = formats.post(
        "/v1/embeddings", {"model": "tiny", "input": WHOLE, "encoding_format": "base64"}
    )
    (number,) = struct.unpack("<f", base64.b64decode(reply["data"][0]["embedding"]))
    assert number == close(score)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(formats: Formats, path: str) -> None:
    scores = formats.native(QUESTION, *DOCUMENTS)
    order = sorted(range(3), key=lambda place: -scores[place])[:2]
    asked = {"model": "tiny", "query": QUESTION, "documents": DOCUMENTS, "top_n": 2}
    results = formats.post(path, asked)["results"]
    assert results == [
        {
            "index": place,
            "relevance_score": close(sigmoid(scores[place])),
            "document": {"text": DOCUMENTS[place]},
        }
        for place in order
    ]
    bare = formats.post(path, {**asked, "return_documents": False})["results"]
    assert [sorted(result) for result in bare] == [["index", "relevance_score"]] * 2


def test_rerank_of_objects(formats: Formats) -> None:
    asked = {"query": "q", "documents": [{"text": "a"}, {"text": "b"}], "rank_fields": ["text"]}
    found = {r["index"]: r["relevance_score"] for r in formats.post("/rerank", asked)["results"]}
    scores = formats.native("q", "a", "b")
    assert found == {0: close(sigmoid(scores[0])), 1: close(sigmoid(scores[1]))}
    both = formats.http.post("/rerank", json={**asked, "rank_fields": ["title", "text"]})
    assert both.status_code == 400
    assert "documents[0]" in both.json()["message"]


def test_tei(formats: Formats) -> None:
    scores = formats.native(QUESTION, *DOCUMENTS)
    found = formats.post("/rerank", {"query": QUESTION, "texts": DOCUMENTS, "raw_scores": True})
    assert {entry["index"]: entry["score"] for entry in found} == {
        place: close(score) for place, score in enumerate(scores)
    }
    assert [entry["score"] for entry in found] == sorted(scores, reverse=True)
    pair = formats.post("/predict", {"inputs": [QUESTION, ANSWER], "raw_scores": True})
    assert pair == [{"score": close(scores[1]), "label": LABEL}]
    batch = formats.post("/predict", {"inputs": [[QUESTION, d] for d in DOCUMENTS]})
    assert batch == [[{"score": close(sigmoid(s)), "label": LABEL}] for s in scores]


@pytest.mark.parametrize("path", ["/get_reward", "/models/tiny/get_reward"])
def test_a_model_is_named_in_the_path_or_not_at_all(formats: Formats, path: str) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    assert formats.post(path, {"query": [WHOLE]})["rewards"] == [close(score)]


def test_a_model_is_named_by_its_folder(formats: Formats, checkpoint: Path) -> None:
    for model in (str(checkpoint), f"{checkpoint}/"):
        assert formats.post("/classify", {"model": model, "input": WHOLE})["model"] == "tiny"


def test_a_folder_names_what_was_loaded_from_it(formats: Formats, checkpoint: Path) -> None:
    """Not the name that it once had: another folder may serve under it by now."""
    body = {"model": f"{checkpoint}-of-before", "input": WHOLE}
    assert formats.http.post("/classify", json=body).status_code == 404


def test_openai_models(formats: Formats) -> None:
    reply = formats.http.get("/v1/models").json()
    assert reply["object"] == "list"
    assert [(model["id"], model["object"]) for model in reply["data"]] == [("tiny", "model")]


def test_probes_and_request_ids(formats: Formats) -> None:
    for path in ("/health", "/ping", "/readyz"):
        assert formats.http.get(path).status_code == 200
    assert formats.http.get("/version").json()["version"]
    answer = formats.http.post("/get_reward", json={}, headers={"x-request-id": "run-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (400, "run-7")


@pytest.mark.parametrize(
    ("path", "body", "code", "shape", "says"),
    [
        ("/get_reward", {}, 400, ["error"], "query: is required"),
        ("/get_reward", {"query": ["a"], "prompts": []}, 200, None, ""),
        ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, 400, ["error"], "prompts: are 2"),
        ("/get_reward", {"query": ["x" * 5000]}, 400, ["error"], "query[0]: is too long"),
        ("/models/other/get_reward", {"query": ["a"]}, 404, ["error"], "no model 'other'"),
        ("/rm", {"prompt": "a"}, 400, ["error"], "response: is required"),
        ("/rm", {"prompt": "a", "response": "x" * 5000}, 400, ["error"], "response: is too long"),
        ("/classify", {"model": "tiny"}, 400, ["error"], "input: is required"),
        ("/classify", {"model": "tiny", "input": []}, 400, ["error"], "input: must have"),
        ("/classify", {"model": "no", "input": "a"}, 404, ["error"], "no model 'no'"),
        ("/classify", {"input": "a", "chat_template": "x"}, 400, ["error"], "chat_template: can't"),
        ("/classify", {"messages": [{"role": "user", "content": "a"}]}, 400, ["error"], "messages"),
        ("/pooling", {"input": [10**6, 3]}, 400, ["error"], "vocabulary"),
        ("/pooling", {"input": 5}, 400, ["error"], "input: input should be a valid string"),
        ("/pooling", {"input": [5, "a"]}, 400, ["error"], "input[1]: "),
        ("/classify", {"input": "a", "tools": [{}]}, 400, ["error"], "tools: is for messages"),
        (
            "/classify",
            {"messages": [{"role": "user", "content": "a"}, {"role": "pirate", "content": "b"}]},
            400,
            ["error"],
            "messages: must end with",
        ),
        (
            "/classify",
            {
                "messages": [
                    {"role": "pirate", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            400,
            ["error"],
            "messages[0].role",
        ),
        (
            "/classify",
            {
                "messages": [
                    {"role": "user", "content": "a", "function_call": {"name": "f"}},
                    {"role": "assistant", "content": "b"},
                ]
            },
            400,
            ["error"],
            "messages[0].function_call: is not part of",
        ),
        ("/score", {"text_1": "a", "text_2": ["b", "x" * 5000]}, 400, ["error"], "text_2[1]"),
        ("/score", {"text_1": "a", "text_2": "b", "instruction": "c"}, 400, ["error"], "instruct"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400, ["error"], "text_2: are 1"),
        ("/rerank", {"query": "a", "texts": []}, 422, ["error", "error_type"], "texts:"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, ["error", "error_type"], "inputs: must"),
        (
            "/rerank",
            {"query": "a", "documents": []},
            400,
            ["detail", "error", "message"],
            "documents:",
        ),
        (
            "/rerank",
            {"query": "a", "documents": ["b", "x" * 5000]},
            400,
            ["detail", "error", "message"],
            "documents[1]: is too long",
        ),
        (
            "/rerank",
            {"query": "a", "documents": [{"text": "\ud800"}]},
            400,
            ["detail", "error", "message"],
            "documents[0]",
        ),
        (
            "/nemo_gym/verify",
            {
                "responses_create_params": {"input": [{"role": "pirate", "content": "a"}]},
                "response": {"output": [{"content": "b"}]},
            },
            400,
            ["detail"],
            "responses_create_params.input[0].role",
        ),
        (
            "/nemo_gym/verify",
            {"responses_create_params": {"input": "a"}, "response": {"output": []}},
            400,
            ["detail"],
            "response.output: holds no message",
        ),
        (
            "/nemo_gym/verify",
            {
                "responses_create_params": {"input": "a"},
                "response": {"output": [{"type": "function_call", "name": "f"}]},
            },
            400,
            ["detail"],
            "response.output: has the tool call 'f'",
        ),
    ],
)
def test_errors_have_the_shape_of_each_system(
    formats: Formats, path: str, body: Any, code: int, shape: list[str] | None, says: str
) -> None:
    answer = formats.http.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == code, answer.text
    if shape is not None:
        assert sorted(answer.json()) == shape
        assert says in json.dumps(answer.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"input":[' + b"-1," * 300_000 + b"-1]}"),
        ("/get_reward", b'{"query":[' + b"1," * 300_000 + b"1]}"),
        ("/predict", b'{"inputs":[[' + b"1," * 300_000 + b"1]]}"),
        ("/rm", b'{"prompt":[{"role":"u","content":[' + b"1," * 300_000 + b'1]}],"response":""}'),
        (
            "/nemo_gym/verify",
            b'{"responses_create_params":{"input":[{"role":"u","content":['
            + b"1," * 300_000
            + b'1]}]},"response":{"output":[]}}',
        ),
        ("/nemo_gym/verify", b'{"responses_create_params":{"input":"a"},"response":{"x":1e400}}'),
    ],
)
def test_a_body_full_of_faults_costs_no_more_than_its_first(
    formats: Formats, path: str, body: bytes
) -> None:
    def resident() -> float:
        (line,) = (
            line
            for line in formats.http.get("/metrics").text.splitlines()
            if line.startswith("process_resident_memory_bytes ")
        )
        return float(line.split()[-1])

    before = resident()
    answer = formats.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert len(answer.text) < 2000
    assert resident() - before < 100e6  # with an error for each entry it is a gigabyte


def test_only_other_formats_lie_below_a_models_path(formats: Formats) -> None:
    """The native routes name their model in the body, and a second name must not be ignored."""
    body = {"model": "tiny", "items": [{"prompt": "a", "responses": ["b"]}]}
    assert formats.http.post("/models/tiny/v1/score", json=body).status_code == 413


async def test_one_by_one_costs_little_more_than_grouped(formats: Formats) -> None:
    """8 prompts of 8 answers, 64 requests in flight: what they begin with is computed once."""
    question = "Put it into hot water for eight minutes. Is there something else? " * 3
    answers = [f"First add the tens {n}, then add the ones. Answer: 12" for n in range(8)]

    def prompts(names: str) -> list[str]:
        start = "<|im_start|>user\n"
        return [f"{start}{n} {question}<|im_end|>\n<|im_start|>assistant\n" for n in names]

    def items(names: str) -> list[Any]:
        ended = [f"{answer}<|im_end|>\n" for answer in answers]
        return [{"prompt": {"formatted_text": p}, "responses": ended} for p in prompts(names)]

    def computed() -> float:
        lines = formats.http.get("/metrics").text.splitlines()
        counts = (line for line in lines if line.startswith("guerdon_computed_tokens_total{"))
        return sum(float(line.split()[-1]) for line in counts)

    before = computed()
    formats.post("/v1/score", {"model": "tiny", "items": items("abcdefgh")})
    grouped = computed() - before
    async with httpx.AsyncClient(base_url=formats.server.url, timeout=120) as http:
        bodies = [
            {"query": [prompt + answer], "prompts": [prompt], "labels": [None]}
            for prompt in prompts("ijklmnop")
            for answer in answers
        ]
        replies = await asyncio.gather(*(http.post("/get_reward", json=body) for body in bodies))
    alone = computed() - before - grouped
    assert 8 * 8 * 20 < grouped <= alone <= 1.3 * grouped
    native = formats.post("/v1/score", {"model": "tiny", "items": items("ijklmnop")})
    scores = [score["score"] for item in native["items"] for score in item["scores"]]
    assert [reply.json()["rewards"] for reply in replies] == [[close(score)] for score in scores]
