"""A judge that compares: rankings by gRPC, HTTP and client, and what the order of two does."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from tests.service.messages import item, prompt, response, score_request
from tests.service.test_pairwise import command
from tests.support.command import read_rows, write_jsonl
from tests.support.in_process import details, field_at_fault

from guerdon.client import AsyncRewardClient
from guerdon.reward.judge import question
from guerdon.v1 import reward_pb2

from .conftest import StartJudge
from .endpoint import Json, ScriptedEndpoint
from .test_data import shown
from .test_judge import failed

ANSWERS = ["bb", "a", "dddd", "ccc", "ee"]


def both(body: Json) -> tuple[str, str]:
    question = body["messages"][-1]["content"]
    return shown(question, "first"), shown(question, "second")


def longer(body: Json) -> str:
    """The better answer is the longer one."""
    first, second = map(len, both(body))
    return f"Why not.\nVerdict: {'A' if first > second else 'B' if first < second else 'tie'}"


def rank_request(*answers: str, **more: Any) -> reward_pb2.RankRequest:
    candidates = [response(answer) for answer in answers]
    return reward_pb2.RankRequest(model="j", prompt=prompt("q"), candidates=candidates, **more)


async def test_ranks_by_all_pairs_in_both_orders(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = longer
    async with judged(ask="compare") as run:
        reply = await run.rewards.Rank(rank_request(*ANSWERS))
        expected = [(2, 1.0), (3, 0.5), (0, -0.25), (4, -0.25), (1, -1.0)]
        assert [(each.index, each.score.score) for each in reply.ranking] == expected
        for each in reply.ranking:
            (attribute,) = each.score.attributes
            assert (attribute.name, attribute.value) == ("order_disagreement", 0.0)
        assert len(endpoint.bodies) == 20
        asked = {both(body) for body in endpoint.bodies}
        assert asked == {(a, b) for a in ANSWERS for b in ANSWERS if a != b}
        async with AsyncRewardClient(f"127.0.0.1:{run.ports.port}") as client:
            ranked = await client.rank("j", "q", ANSWERS, top_n=2)
            assert [each.index for each in ranked.ranking] == [2, 3]
            info = await client.get_model("j")
            assert (info.kind, info.ranks_only) == ("judge", True)
            assert not (await client.get_model("m")).ranks_only
        assert len(endpoint.bodies) == 20


async def test_the_command_ranks_rows_and_does_not_score_them(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    endpoint.script = longer
    rows = [{"prompt": f"q{n}", "responses": ANSWERS[: 2 + n]} for n in range(3)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    async with judged(ask="compare") as run:
        done = await command(run, "rank", source, model="j")
        assert done.returncode == 0, done.stderr
        best = [row["responses"][row["ranking"][0]] for row in read_rows(done.stdout)]
        assert best == ["bb", "dddd", "dddd"]
        done = await command(run, "score", source, model="j")
        assert done.returncode == 1
        assert b"The model j compares answers with each other" in done.stderr


@pytest.mark.parametrize("word", ["A", "B"])
async def test_a_judge_that_goes_by_the_place_prefers_nobody(
    judged: StartJudge, endpoint: ScriptedEndpoint, word: str
) -> None:
    endpoint.script = lambda body: f"Verdict: {word}"
    async with judged(ask="compare") as run:
        body = {"model": "j", "prompt": "q", "candidates": ["a", "b", "c"]}
        ranking = (await run.http.post("/v1/rank", json=body)).json()["ranking"]
    assert [each["index"] for each in ranking] == [0, 1, 2]
    assert [each["score"]["score"] for each in ranking] == [0.0, 0.0, 0.0]
    attributes = [each["score"]["attributes"] for each in ranking]
    assert attributes == [[{"name": "order_disagreement", "value": 1.0}]] * 3


async def test_a_pair_on_which_the_orders_part_is_a_tie(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    """It prefers c to all, and of a and b whichever it reads first."""

    def script(body: Json) -> str:
        _, second = both(body)
        return f"Verdict: {'B' if second == 'c' else 'A'}"

    endpoint.script = script
    async with judged(ask="compare") as run:
        reply = await run.rewards.Rank(rank_request("a", "b", "c"))
    found = {each.index: each.score for each in reply.ranking}
    assert [found[n].score for n in range(3)] == [-0.5, -0.5, 1.0]
    assert [found[n].attributes[0].value for n in range(3)] == [0.5, 0.5, 0.0]


async def test_votes_weigh_how_often_the_better_one_won(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    """Of four votes three say the better one, in either order."""

    def script(body: Json) -> str:
        first, _ = both(body)
        better, worse = ("A", "B") if first == "good" else ("B", "A")
        return f"Verdict: {worse if body['seed'] == 3 else better}"

    endpoint.script = script
    async with judged(ask="compare", votes=4, temperature=1.0, seed=0) as run:
        reply = await run.rewards.Rank(rank_request("bad", "good"))
    assert [(each.index, each.score.score) for each in reply.ranking] == [(1, 0.5), (0, -0.5)]
    assert len(endpoint.bodies) == 8


async def test_a_verdict_that_is_missing_fails_the_ranking(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = lambda body: "Verdict: C" if both(body) == ("c", "a") else "Verdict: A"
    async with judged("[limits]\ntries = 1\n", ask="compare") as run:
        error = await failed(run.rewards.Rank(rank_request("a", "b", "c")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_ranking_that_needs_too_many_verdicts_is_refused_unread(
    judged: StartJudge, endpoint: ScriptedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mock(wraps=question.new_questions)
    endpoint.script = longer
    limits = "[limits]\nmax_waiting = 12\n"
    async with judged(limits, ask="compare", votes=2, temperature=1.0) as run:
        monkeypatch.setattr(question, "new_questions", read)
        error = await failed(run.rewards.Rank(rank_request("a", "b", "c", "d")))  # 4 · 3 · 2
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_at_fault(details(error)) == "candidates"
        assert "need 24 verdicts" in str(error.details())
        assert "(12, limits.max_waiting)" in str(error.details())
        assert (read.call_count, endpoint.bodies) == (0, [])
        reply = await run.rewards.Rank(rank_request("a", "bb", "ccc"))  # 3 · 2 · 2
        assert [each.index for each in reply.ranking] == [2, 1, 0]
        assert read.call_count == 1


async def test_it_has_no_score_for_one(judged: StartJudge, endpoint: ScriptedEndpoint) -> None:
    async with judged(ask="compare") as run:
        error = await failed(run.rewards.Score(score_request(item("q", "a"), model="j")))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "rank them instead" in str(error.details())
        error = await failed(run.rewards.Rank(rank_request("a")))
        assert field_at_fault(details(error)) == "candidates"
    assert not endpoint.bodies
