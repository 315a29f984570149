"""NeMo Gym's resource servers, which verifiers and NeMo-RL ask: /nemo_gym/verify."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import Message, PriorityClass, ScoreItem
from guerdon.reward.wire.formats.format import Asked, B, ForeignBody, Format, Json
from guerdon.reward.wire.formats.messages import ForeignMessage, content, conversation
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.routes import validated
from guerdon.serving.http.schemas import Text
from guerdon.serving.status import ErrorStatus


class CreateParams(ForeignBody):
    """What the policy was asked, as OpenAI's Responses API takes it."""

    instructions: Text | None = None
    input: Text | list[ForeignMessage]


class PolicyResponse(ForeignBody):
    """What the policy answered, as OpenAI's Responses API gives it."""

    output: list[dict[str, Any]]


class VerifyBody(ForeignBody):
    """A rollout; all of it comes back with its reward."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class SeedBody(VerifyBody):
    """A session that begins: there is nothing to prepare."""

    response: dict[str, Any] = Field(default={})


class SeedSession(Format[SeedBody]):
    """NeMo Gym's /seed_session."""

    paths = ("/nemo_gym/seed_session",)
    body = SeedBody

    def ask(self, body: SeedBody) -> Asked:
        return Asked(items=[], if_empty={})

    def reply(self, body: SeedBody, scored: Scored) -> Json:
        raise AssertionError("nothing was asked")


class Verify(Format[VerifyBody]):
    """NeMo Gym's /verify: the body with its reward."""

    paths = ("/nemo_gym/verify",)
    body = VerifyBody
    hold_seconds = 170.0
    priority = PriorityClass.BATCH

    def ask(self, body: VerifyBody) -> Asked:
        asked = _part(CreateParams, body.responses_create_params, "responses_create_params")
        answer = _part(PolicyResponse, body.response, "response")
        turns: tuple[Message, ...]
        if isinstance(asked.input, str):
            turns = (Message("user", asked.input),)
        else:
            turns = conversation(asked.input, "responses_create_params.input")
        if asked.instructions:
            turns = (Message("system", asked.instructions), *turns)
        return Asked(items=[ScoreItem(turns, (_answer(answer.output),))])

    def reply(self, body: VerifyBody, scored: Scored) -> Json:
        return {**body.model_dump(), "reward": scored.items[0][0].score}

    def field(self, path: str) -> str:
        return "response.output" if path.startswith("items[0]") else path

    def error(self, status: ErrorStatus) -> Json:
        return {"detail": status.message}


def _part(kind: type[B], value: Json, field: str) -> B:
    """A part of a body as its model, its errors under the part's name."""
    try:
        return validated(kind, value)
    except InvalidRequest as error:
        raise error.under(field) from None


def _answer(output: list[dict[str, Any]]) -> str:
    """The text of a response's messages; reasoning is no part of it.

    Raises:
        InvalidRequest: it called tools, or said nothing.
    """
    texts = []
    for place, entry in enumerate(output):
        field = f"response.output[{place}]"
        kind = entry.get("type", "message")
        if kind == "message":
            texts.append(content(_part(ForeignMessage, entry, field), field))
        elif kind != "reasoning":
            raise InvalidRequest(f"{field}.type", f"is {kind!r}: only messages can be scored")
    if not texts:
        raise InvalidRequest("response.output", "holds no message")
    return "".join(texts)
