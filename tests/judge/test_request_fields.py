"""The fields of a judge's request that hosted models differ in, and errors that name them."""

from __future__ import annotations

import json

import pytest
from tests.service.messages import score_request

from .conftest import StartJudge
from .endpoint import Answer, ScriptedEndpoint, replies
from .test_judge import failed

JSON = '[verdict]\nform = "json"\n'


async def test_the_limit_has_another_name_and_the_temperature_is_left_out(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    hosted = {"limit_field": "max_completion_tokens", "send_temperature": False, "max_tokens": 50}
    async with judged("[extra]\nreasoning_effort = 'low'\n", **hosted, votes=2) as run:
        reply = await run.rewards.Score(score_request(model="j"))
        assert list(reply.items[0].scores[0].members) == [7.0, 7.0]
    for body in endpoint.bodies:
        del body["messages"]
        assert body == {
            "model": "judge-1",
            "max_completion_tokens": 50,
            "reasoning_effort": "low",
        }


@pytest.mark.parametrize(
    ("param", "extra", "remedy"),
    [
        ("response_format", JSON, "verdict.send_schema = false leaves it out"),
        ("response_format.type", JSON, "verdict.send_schema = false leaves it out"),
        ("max_tokens", "", 'limit_field = "max_completion_tokens" gives it another name'),
        ("temperature", "", "send_temperature = false leaves it out"),
        ("response_format", "", None),  # it was not sent
        ("messages", "", None),
        (None, "", None),
    ],
)
async def test_an_error_says_which_setting_helps(
    judged: StartJudge,
    endpoint: ScriptedEndpoint,
    param: str | None,
    extra: str,
    remedy: str | None,
) -> None:
    error = {"message": "the endpoint's own words", "param": param}
    endpoint.script = replies(Answer(json.dumps({"error": error}).encode(), 400))
    async with judged(extra) as run:
        refused = await failed(run.rewards.Score(score_request(model="j")))
    assert refused.code().name == "INTERNAL"
    said = "the endpoint of the judge 'j' answers with HTTP 400"
    if remedy is not None:
        said += f" for the field {str(param).partition('.')[0]}; if it never takes that, {remedy}"
    assert refused.details() == said
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error": "no"}', b'{"error": []}', b"[" * 9999])
async def test_an_error_of_any_other_shape_has_its_status_alone(
    judged: StartJudge, endpoint: ScriptedEndpoint, body: bytes
) -> None:
    endpoint.script = replies(Answer(body, 400))
    async with judged() as run:
        refused = await failed(run.rewards.Score(score_request(model="j")))
    assert refused.details() == "the endpoint of the judge 'j' answers with HTTP 400"
