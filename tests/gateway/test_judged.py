"""A judge as a gateway's reward model: its verdicts order the choices, or there is no answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.judge.conftest import JudgeLoader, write_settings
from tests.judge.endpoint import Json, ScriptedEndpoint, scripted
from tests.judge.test_data import shown
from tests.service.conftest import start_server
from tests.support.formula_engine import text_of, tokens_of
from tests.support.in_process import InProcess
from tests.support.sampler_service import start_sampler

from .support import QUESTION, gateway_before, numbers_in, openai_client

COUNT = 4
IDS = [len(word) for word in QUESTION[0]["content"].split()]
DRAWN = [text_of(tokens_of(IDS, sample)) for sample in range(COUNT)]


def grade(text: str) -> float:
    """What the judge makes of an answer: 1 to 10, in hundredths."""
    return 1 + numbers_in(text)[0] % 900 / 100


def verdict(body: Json) -> str:
    """Reads the answer out of the judge's question, as a model would."""
    answer = shown(body["messages"][-1]["content"], "response")
    return f"It says {answer!r}.\nScore: {grade(answer)}"


@asynccontextmanager
async def judged_gateway(folder: Path, endpoint: ScriptedEndpoint) -> AsyncIterator[InProcess]:
    """A gateway whose reward model is a judge that tries once."""
    judge = write_settings(folder / "judge.toml", endpoint.url, "[limits]\ntries = 1\n")
    async with (
        start_server(JudgeLoader(), models={"j": str(judge)}) as rewards,
        start_sampler() as sampler,
        gateway_before(sampler, f"127.0.0.1:{rewards.ports.port}/j") as gateway,
    ):
        yield gateway


async def test_choices_come_in_the_order_of_the_verdicts(tmp_path: Path) -> None:
    with scripted(verdict) as endpoint:
        async with (
            judged_gateway(tmp_path, endpoint) as gateway,
            openai_client(gateway.http) as client,
        ):
            reply = await client.chat.completions.create(
                model=f"policy:best-of-{COUNT}", messages=QUESTION, n=COUNT
            )
    best_first = sorted(DRAWN, key=grade, reverse=True)
    assert best_first != DRAWN
    assert len(set(map(grade, DRAWN))) == COUNT
    assert [choice.message.content for choice in reply.choices] == best_first
    told = [(choice.model_extra or {})["guerdon"]["score"] for choice in reply.choices]
    assert told == list(map(grade, best_first))
    assert len(endpoint.bodies) == COUNT


async def test_a_judge_that_gives_one_answer_no_verdict_gives_no_ranking(tmp_path: Path) -> None:
    def script(body: Json) -> str:
        said = verdict(body)
        return "Score: ten" if repr(DRAWN[1]) in said else said

    asked = {"model": f"policy:best-of-{COUNT}", "messages": QUESTION}
    with scripted(script) as endpoint:
        async with judged_gateway(tmp_path, endpoint) as gateway:
            reply = await gateway.http.post("/v1/chat/completions", json=asked)
    assert reply.status_code == 503
    assert reply.json().keys() == {"error"}
    message = reply.json()["error"]["message"]
    assert message.startswith("the rewards of j are away: the endpoint of the judge 'j'")
    assert "gave no verdict" in message
