"""Guerdon's sampler as a judge's endpoint, its replies worked out by the engine's formula."""

from __future__ import annotations

from pathlib import Path

import grpc
from tests.service.conftest import start_server
from tests.service.messages import item, score_request
from tests.support.formula_engine import text_of, tokens_of
from tests.support.sampler_service import Harness, start_sampler

from .conftest import JudgeLoader, write_settings
from .test_judge import failed

TEMPLATE = "{{ prompt }} {{ response }}"
NONCE = "0123456789abcdef"  # another one each time, and as long
FIRST_NUMBER = "[verdict]\npattern = '(\\d+)(?: \\d+)*'\nlowest = 3\nhighest = 999\n"


def settings(folder: Path, sampler: Harness, extra: str) -> dict[str, str]:
    """The models of a reward server whose judge asks the sampler."""
    url = f"{sampler.http.base_url}/v1"
    given = {"model": "formula", "system": "Be fair.", "template": TEMPLATE}
    return {"j": str(write_settings(folder / "judge.toml", url, extra, **given))}


def verdict(prompt: str, response: str) -> int:
    """The first number that the policy says to the judge's question."""
    question = (
        f"Be fair. <user-{NONCE}> {prompt} </user-{NONCE}> "
        f"<response-{NONCE}> {response} </response-{NONCE}>"
    )
    said = text_of(tokens_of([len(word) for word in question.split()], 0))
    return int(said.split()[0])


async def test_what_the_sampler_says_is_the_verdict(tmp_path: Path) -> None:
    answers = ("Water.", "Water that falls.")
    async with start_sampler() as sampler:
        models = settings(tmp_path, sampler, FIRST_NUMBER)
        async with start_server(JudgeLoader(), models=models) as run:
            asked = score_request(item("What is rain?", *answers), model="j")
            reply = await run.rewards.Score(asked)
    scores = [score.score for score in reply.items[0].scores]
    assert scores == [verdict("What is rain?", answer) for answer in answers]
    assert scores[0] != scores[1]


async def test_a_schema_is_refused_and_the_error_says_how_to_leave_it_out(tmp_path: Path) -> None:
    async with start_sampler() as sampler:
        for send, code, words in (
            (True, grpc.StatusCode.INTERNAL, "verdict.send_schema = false leaves it out"),
            (False, grpc.StatusCode.UNAVAILABLE, "gave no verdict"),  # it says no JSON
        ):
            form = f'[verdict]\nform = "json"\nsend_schema = {str(send).lower()}\n'
            models = settings(tmp_path, sampler, f"{form}[limits]\ntries = 1\n")
            async with start_server(JudgeLoader(), models=models) as run:
                refused = await failed(run.rewards.Score(score_request(model="j")))
            assert refused.code() is code
            assert words in str(refused.details())
            assert (sampler.engine.behaviour.drawn > 0) is not send
