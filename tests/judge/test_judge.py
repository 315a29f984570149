"""A judge over real sockets: scores by gRPC and HTTP, and errors in the place of numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.service.messages import item, score_request
from tests.support.in_process import details, retry_seconds

from guerdon.client import AsyncRewardClient, Item
from guerdon.reward.judge import judge as judge_module

from .conftest import StartJudge
from .endpoint import NEVER, Answer, Script, ScriptedEndpoint, completion, replies


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FIRST_DELAY", 0.001)


async def failed(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call, which must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def requests_line(revision: str, outcome: str) -> str:
    """The metric of requests that ended so."""
    labels = f'model="j",outcome="{outcome}",revision="{revision[:12]}"'
    return f"guerdon_judge_requests_total{{{labels}}}"


async def test_a_verdict_is_the_score_everywhere(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    async with judged() as run:
        reply = await run.rewards.Score(score_request(item("What is rain?", "Water."), model="j"))
        (score,) = reply.items[0].scores
        assert (score.score, list(score.members), score.HasField("spread")) == (7.0, [7.0], False)
        body = {"model": "j", "items": [{"prompt": "Another?", "responses": ["a", "b"]}]}
        spoken = (await run.http.post("/v1/score", json=body)).json()
        assert [each["score"] for each in spoken["items"][0]["scores"]] == [7.0, 7.0]
        texts = {"query": "Rank?", "texts": ["a", "b"], "raw_scores": True}
        reranked = (await run.http.post("/models/j/rerank", json=texts)).json()
        assert [entry["score"] for entry in reranked] == [7.0, 7.0]
        asked = {"prompt": "slime?", "response": "No.", "label": None}
        assert (await run.http.post("/models/j/rm", json=asked)).json() == 7.0
        async with AsyncRewardClient(f"127.0.0.1:{run.ports.port}") as client:
            (scored,) = (await client.score("j", [Item("Why?", ["Because."])])).scores
            info = await client.get_model("j")
        assert scored == [7.0]
        assert (info.kind, info.compute_mode, info.base_model) == ("judge", "remote", "judge-1")
        assert reply.info.revision == info.revision
        series = f'{{model="j",revision="{info.revision[:12]}"}}'
        assert await run.metric(f"guerdon_judge_tokens_total{series}") == 700
        assert await run.metric(f"guerdon_judge_request_seconds_count{series}") == 7
    assert len(endpoint.bodies) == 7
    first = endpoint.bodies[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("judge-1", 0.0, 1024)
    assert "What is rain?" in endpoint.questions()[0]
    assert "authorization" not in endpoint.headers[0]


UNCLEAR = "gave no verdict: "


@pytest.mark.parametrize(
    ("script", "code", "message", "requests"),
    [
        (replies("I can't say."), "UNAVAILABLE", f"{UNCLEAR}the last line", 2),
        (replies(" \n"), "UNAVAILABLE", f"{UNCLEAR}the reply is empty", 2),
        (replies("Score: 11"), "UNAVAILABLE", f"{UNCLEAR}the verdict is outside the range", 2),
        (replies("Score: nan"), "UNAVAILABLE", UNCLEAR, 2),
        (replies("Score: 10\nScore: 2"), "UNAVAILABLE", f"{UNCLEAR}the reply has several", 2),
        (replies("Score: 2\nbut it could be 3"), "UNAVAILABLE", UNCLEAR, 2),
        (replies("My score: 2"), "UNAVAILABLE", UNCLEAR, 2),
        (replies(completion("Score: 7", finish_reason="length")), "UNAVAILABLE", "cut (length)", 2),
        (replies(completion(None)), "UNAVAILABLE", "its message has no text", 2),
        (replies(Answer(b"<html>")), "UNAVAILABLE", "is no chat completion", 2),
        (replies(Answer(b'{"choices": []}')), "UNAVAILABLE", "is no chat completion", 2),
        (replies(Answer(b"[1]")), "UNAVAILABLE", "is no chat completion", 2),
        (replies(Answer(b"oh", 500)), "UNAVAILABLE", "answers with HTTP 500, in the last of 2", 2),
        (replies(Answer(b"{}", 429)), "UNAVAILABLE", "answers with HTTP 429", 2),
        (replies(Answer(b"{}", 401)), "INTERNAL", "answers with HTTP 401", 1),
        (replies(Answer(b"", 302, {"location": "/x"})), "INTERNAL", "answers with HTTP 302", 1),
    ],
)
async def test_what_brings_no_verdict_is_an_error_after_all_tries(
    judged: StartJudge,
    endpoint: ScriptedEndpoint,
    script: Script,
    code: str,
    message: str,
    requests: int,
) -> None:
    endpoint.script = script
    async with judged("[limits]\ntries = 2\n") as run:
        error = await failed(run.rewards.Score(score_request(item("q", "Score: 10"), model="j")))
        assert (error.code().name, len(endpoint.bodies)) == (code, requests)
        assert message in str(error.details())
        body = {"model": "j", "items": [{"prompt": "q", "responses": ["Score: 10"]}]}
        spoken = await run.http.post("/v1/score", json=body)
        assert spoken.json()["error"]["code"] == code
        endpoint.script = replies("Score: 3")  # nothing of it was kept
        reply = await run.rewards.Score(score_request(item("q", "Score: 10"), model="j"))
        assert reply.items[0].scores[0].score == 3.0


async def test_no_answer_in_time_is_an_error_after_all_tries(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(NEVER)
    async with judged("[limits]\ntries = 2\ntimeout = 0.2\n") as run:
        error = await failed(run.rewards.Score(score_request(model="j")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "gave no answer in 0.2 s, in the last of 2 tries" in str(error.details())
        revision = run.server.registry.resolve("j").info.revision
        assert await run.metric(requests_line(revision, "timeout")) == 2


async def test_a_later_try_may_bring_the_verdict(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies("Well.", Answer(b"", 503), "A 4 it is.\n\nScore: 4.5 \n")
    async with judged() as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 4.5
        for outcome in ("no_verdict", "away", "ok"):
            assert await run.metric(requests_line(reply.info.revision, outcome)) == 1


async def test_a_limited_endpoint_says_when_to_come_back(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(Answer(b"slow down", 429, {"retry-after": "40"}))
    async with judged() as run:
        error = await failed(run.rewards.Score(score_request(model="j")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(details(error)) == 40
        assert len(endpoint.bodies) == 1


async def test_one_item_without_a_verdict_fails_the_call(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = lambda body: "Score: 5" if "apple" in str(body) else "Hm."
    async with judged(template="{{ prompt }}{{ response }}", system="s") as run:
        request = score_request(item("q", "apple", "pear"), item("q", "an apple"), model="j")
        assert (await failed(run.rewards.Score(request))).code() is grpc.StatusCode.UNAVAILABLE


async def test_the_key_is_sent_and_told_to_nobody(
    judged: StartJudge,
    endpoint: ScriptedEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame-1")
    endpoint.script = replies(Answer(b'{"error": "the key sesame-1 is unknown"}', 403))
    with caplog.at_level(logging.DEBUG):
        async with judged(api_key_variable="JUDGE_KEY") as run:
            error = await failed(run.rewards.Score(score_request(model="j")))
            models = (await run.http.get("/v1/models")).text
    assert endpoint.headers[0]["authorization"] == "Bearer sesame-1"
    assert "the key … is unknown" in caplog.text
    for text in (caplog.text, str(error), models):
        assert "sesame" not in text


async def test_votes_are_told_with_their_mean_and_spread(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = lambda body: f"Score: {body['seed'] - 36}"
    async with judged(votes=3, temperature=0.8, seed=42) as run:
        reply = await run.rewards.Score(score_request(item("q", "a"), model="j"))
        (score,) = reply.items[0].scores
        assert (score.score, list(score.members)) == (7.0, [6.0, 7.0, 8.0])
        assert score.spread == pytest.approx((2 / 3) ** 0.5)
        body = {"model": "j", "prompt": "q", "candidates": ["a"]}
        (ranked,) = (await run.http.post("/v1/rank", json=body)).json()["ranking"]
        assert ranked["score"]["spread"] == pytest.approx((2 / 3) ** 0.5)
    assert sorted(body["seed"] for body in endpoint.bodies) == [42, 43, 44]
    assert {body["temperature"] for body in endpoint.bodies} == {0.8}


async def test_verdicts_are_kept_by_content_until_the_settings_change(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    from guerdon.v1 import admin_pb2

    async with judged() as run:
        request = score_request(item("q", "a", "b", "a"), model="j")
        first = await run.rewards.Score(request)
        assert len(endpoint.bodies) == 2  # equal answers are one question
        assert await run.rewards.Score(score_request(item("q", "b"), model="j"))
        line = f'guerdon_judge_cached_total{{model="j",revision="{first.info.revision[:12]}"}}'
        assert (len(endpoint.bodies), await run.metric(line)) == (2, 1)
        await run.rewards.Score(score_request(item("b", "q"), item("q ", "a"), model="j"))
        assert len(endpoint.bodies) == 4
        file = tmp_path / "judge.toml"
        file.write_text(file.read_text().replace("judge-1", "judge-2"))
        await run.admin.LoadModel(
            admin_pb2.LoadModelRequest(name="j", path=str(file), promote=True)
        )
        second = await run.rewards.Score(request)
        assert second.info.revision != first.info.revision
        assert [body["model"] for body in endpoint.bodies[4:]] == ["judge-2", "judge-2"]


async def test_the_latest_used_verdicts_are_kept(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    async with judged("[limits]\ncached = 2\n") as run:
        for answer in ("a", "b", "a", "c", "a", "b"):  # b leaves for c, and comes again
            await run.rewards.Score(score_request(item("q", answer), model="j"))
        assert len(endpoint.bodies) == 4


async def test_verdicts_that_came_are_not_asked_for_again_when_a_call_failed(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = lambda body: "Score: 5" if "apple" in str(body) else Answer(b"", 400)
    async with judged("[limits]\nat_once = 1\n") as run:
        request = score_request(item("q", "apple", "pear"), model="j")
        assert (await failed(run.rewards.Score(request))).code() is grpc.StatusCode.INTERNAL
        endpoint.script = replies("Score: 6")
        reply = await run.rewards.Score(request)
        assert [score.score for score in reply.items[0].scores] == [5.0, 6.0]
        assert len(endpoint.bodies) == 3


async def test_json_verdicts(judged: StartJudge, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = replies(
        '{"reason": "Score: 10", "grade": 10, "grade": 2}',
        '{"reason": "r", "grade": 10, "more": 1}',
        '{"reason": "r", "grade": "10"}',
        '{"reason": "r", "grade": true}',
        'Sure: {"reason": "r", "grade": 10}',
        '{"reason": "It says \\"grade\\": 10.", "grade": 2.5}',
    )
    extra = '[verdict]\nform = "json"\nfield = "grade"\n[limits]\ntries = 6\n'
    async with judged(extra) as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 2.5
    assert len(endpoint.bodies) == 6
    sent = endpoint.bodies[0]["response_format"]["json_schema"]["schema"]
    assert list(sent["properties"]) == sent["required"] == ["reason", "grade"]
    assert sent["properties"]["grade"] == {"type": "number", "minimum": 1.0, "maximum": 10.0}
    assert sent["additionalProperties"] is False


RUBRIC: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["faults", "tone", "score"],
    "properties": {
        "faults": {"type": "array", "items": {"type": "string"}},
        "tone": {"type": "string", "enum": ["kind", "rude"], "description": "How it sounds."},
        "sure": {"type": "boolean"},
        "score": {"type": "integer", "minimum": 1, "maximum": 10},
    },
}
GOOD = {"faults": ["score: 10"], "tone": "kind", "score": 4}
BAD: list[dict[str, Any]] = [
    {**GOOD, "score": 11},
    {**GOOD, "score": 4.5},
    {**GOOD, "score": True},
    {**GOOD, "tone": "plain"},
    {**GOOD, "faults": ["a", 1]},
    {**GOOD, "sure": 1},
    {**GOOD, "more": 1},
    {key: value for key, value in GOOD.items() if key != "tone"},
]


async def test_a_schema_of_ones_own_is_sent_and_each_reply_is_held_to_it(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "rubric.json").write_text(json.dumps(RUBRIC))
    endpoint.script = replies(*map(json.dumps, [*BAD, GOOD]))
    own = '[verdict]\nform = "json"\nfield = "score"\nschema_file = "rubric.json"\n'
    async with judged(f"{own}[limits]\ntries = {len(BAD) + 1}\n") as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 4.0
    assert len(endpoint.bodies) == len(BAD) + 1
    sent = endpoint.bodies[0]["response_format"]["json_schema"]
    assert (sent["strict"], sent["schema"]) == (True, RUBRIC)
    assert json.dumps(RUBRIC) in endpoint.questions()[0]


async def test_a_reply_too_deep_for_a_schema_that_refers_to_itself_is_asked_for_again(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    tree = {**RUBRIC, "properties": {**RUBRIC["properties"], "parts": {"$ref": "#/$defs/parts"}}}
    tree["$defs"] = {"parts": {"type": "array", "items": {"$ref": "#/$defs/parts"}}}
    (tmp_path / "rubric.json").write_text(json.dumps(tree))
    good = json.dumps({**GOOD, "parts": [[[]], []]})
    endpoint.script = replies(good.replace("[[[]], []]", "[" * 500 + "]" * 500), good)
    own = '[verdict]\nform = "json"\nfield = "score"\nschema_file = "rubric.json"\n'
    async with judged(own) as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 4.0
    assert len(endpoint.bodies) == 2


async def test_words_stand_for_numbers(judged: StartJudge, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = replies("Verdict: maybe", "Verdict: yes.", "Verdict: no")
    async with judged("[verdict.values]\nyes = 1\nno = 0\n") as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 0.0
    assert len(endpoint.bodies) == 3
    assert "The verdict is one of: yes, no." in endpoint.questions()[0]
    assert "`Verdict: `" in endpoint.questions()[0]


async def test_a_pattern_and_a_template_of_ones_own(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(
        "Rate {{ lowest }}-{{ highest }}.{{ prompt }}{{ response }}"
    )
    endpoint.script = replies("Score: 3", "[[4]]")
    extra = "[verdict]\npattern = '\\[\\[(\\d)\\]\\]'\nhighest = 5\n[extra]\ntop_p = 0.5\n"
    async with judged(extra, template_file="mine.jinja", system="Be fair.") as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert reply.items[0].scores[0].score == 4.0
    body = endpoint.bodies[0]
    assert body["top_p"] == 0.5
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}
    assert endpoint.questions()[0].startswith("Rate 1-5.")
    assert json.dumps(body).count("what is rain") == 1
