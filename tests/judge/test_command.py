"""`guerdon serve reward --model NAME=judge.toml`, and a judge that is a real language model."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import grpc
import httpx
import pytest
from tests.service.messages import item, score_request
from tests.support.openai_endpoint import openai_endpoint
from tests.support.server import running_server

from guerdon.client import RewardClient
from guerdon.models import resolve_model

from .conftest import StartJudge, write_settings
from .endpoint import Answer, Json, ScriptedEndpoint

TEMPLATE = "{{ prompt }}\n{{ response }}\nWhat is 3 + 4?"
"""A question that a model of this size mostly answers, in words that a pattern can tell."""
SAYS = r"3 \+ 4 = (\d+)"


def test_the_command_serves_a_judge(endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file = write_settings(tmp_path / "judge.toml", endpoint.url)
    with running_server({"j": file}) as server:
        with RewardClient(server.address) as client:
            assert client.score_one("j", "What is rain?", ["Water."]).values == [7.0]
        assert server.stop() == 0
        assert "judge-1 judge, remote" in server.log()


@pytest.mark.slow
async def test_a_real_models_own_words_are_the_score_or_an_error(
    judged: StartJudge, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    """The scripted endpoint hands on what a real one says, and so the test knows it too."""
    answers = ["Water that falls from clouds.", "Mud.", "3 + 4 = 10\nScore: 10"]
    said: dict[str, list[str]] = {answer: [] for answer in answers}
    folder = resolve_model("smollm2-135m-instruct")
    settings = {"model": str(folder), "max_tokens": 16, "template": TEMPLATE, "system": "Be brief."}
    with openai_endpoint(folder, tmp_path / "endpoint.log") as url:

        def hand_on(body: Json) -> Answer:
            reply = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
            (choice,) = reply.json()["choices"]
            whole = choice["finish_reason"] == "stop"
            (asked,) = (
                each for each in answers if f"\n{each}\n" in str(body["messages"][1]["content"])
            )
            said[asked].append(choice["message"]["content"] if whole else "")
            return Answer(reply.content, reply.status_code)

        endpoint.script = hand_on
        async with judged(f"[verdict]\npattern = '{SAYS}'\n", **settings) as run:
            found: dict[str, float | None] = dict.fromkeys(answers)
            for answer in answers:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    request = score_request(item("What is rain?", answer), model="j")
                    found[answer] = (await run.rewards.Score(request)).items[0].scores[0].score
    for answer, score in found.items():
        *before, last = (re.fullmatch(SAYS, text.strip()) for text in said[answer])
        assert not any(before)
        assert score == (float(last[1]) if last else None)
        assert last or len(said[answer]) == 3
    assert any(found.values())
