"""Between the messages of `guerdon.v1` and their JSON twins of the HTTP side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from guerdon.client.errors import LONGEST_RETRY_AFTER, NotFound, Unimplemented, invalid
from guerdon.data.conversation_protos import conversation_from_proto, message_from_proto
from guerdon.v1 import common_pb2, reward_pb2

M = TypeVar("M", bound=Message)

_SERVICE = "/guerdon.v1.RewardService/"
_MIN_PREFIX = 8
"""Fewest characters of a revision's beginning, as the servers hold it."""

UNREADABLE = ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError
"""What is raised where a body is not of the form that it should have."""


@dataclass(frozen=True, slots=True)
class Twin:
    """How one method is asked over HTTP."""

    path: str
    body: Callable[[Any], dict[str, Any] | None]
    """The request as JSON; None for a GET."""
    reply: Callable[[Any, int, bytes], Message]
    """The reply as a message, from the request, the status and the body."""
    answers: tuple[int, ...] = (200,)
    """Statuses that are an answer; others are errors."""


def error_status(http_status: int, body: bytes) -> status_pb2.Status:
    """What an answer tells that is an error, by a Guerdon server or something before it."""
    try:
        return _guerdon_status(json.loads(body)["error"])
    except UNREADABLE:
        code = _CODES.get(http_status, code_pb2.UNKNOWN)
        return status_pb2.Status(code=code, message=f"HTTP status {http_status}, and no reason")


def _guerdon_status(error: Mapping[str, Any]) -> status_pb2.Status:
    message = str(error["message"])
    status = status_pb2.Status(code=code_pb2.Code.Value(error["code"]), message=message)
    if isinstance(field := error.get("field"), str):
        reason = message.removeprefix(f"{field}: ")
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=reason)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(seconds := error.get("retry_after"), int | float):
        detail = error_details_pb2.RetryInfo()
        believed = min(max(0.0, seconds), LONGEST_RETRY_AFTER)
        detail.retry_delay.FromMicroseconds(int(believed * 1e6))
        status.details.add().Pack(detail)
    return status


_CODES = {
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.UNIMPLEMENTED,
    405: code_pb2.UNIMPLEMENTED,
    413: code_pb2.RESOURCE_EXHAUSTED,
    429: code_pb2.UNAVAILABLE,  # a proxy's limit of requests passes
    502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.UNAVAILABLE,
}
"""What statuses mean that something else than a Guerdon server answered, such as a proxy."""


def _options(options: reward_pb2.ScoreOptions) -> dict[str, Any]:
    names = {
        "priority": (common_pb2.PriorityClass, "PRIORITY_CLASS_"),
        "truncation": (reward_pb2.Truncation, "TRUNCATION_"),
        "activation": (reward_pb2.Activation, "ACTIVATION_"),
    }
    found: dict[str, Any] = {
        name: enum.Name(getattr(options, name)).removeprefix(prefix).lower()
        for name, (enum, prefix) in names.items()
    }
    for name in ("normalize", "reject_dropped_text", "reject_control_tokens"):
        found[name] = getattr(options, name)
    return found


def _prompt(prompt: common_pb2.Prompt) -> Any:
    form = prompt.WhichOneof("content")
    if form == "text":
        return prompt.text
    if form == "formatted_text":
        return {"formatted_text": prompt.formatted_text}
    if form == "token_ids":
        return {"token_ids": list(prompt.token_ids.ids)}
    conversation = conversation_from_proto(prompt.conversation, "prompt", invalid)
    turns: list[Any] = list(conversation.messages)
    if not conversation.inputs:
        return turns
    return {
        "messages": turns,
        "tools": conversation.tools,
        "chat_template_kwargs": dict(conversation.chat_template_kwargs),
    }


def _response(response: common_pb2.Response) -> Any:
    form = response.WhichOneof("content")
    if form == "token_ids":
        return {"token_ids": list(response.token_ids.ids)}
    if form == "message":
        return message_from_proto(response.message, "response", invalid)
    return response.text


def _score_body(request: reward_pb2.ScoreRequest) -> dict[str, Any]:
    items = [
        {
            "id": item.id,
            "prompt": _prompt(item.prompt),
            "responses": [_response(response) for response in item.responses],
        }
        for item in request.items
    ]
    return {"model": request.model, "items": items, "options": _options(request.options)}


def _rank_body(request: reward_pb2.RankRequest) -> dict[str, Any]:
    return {
        "model": request.model,
        "prompt": _prompt(request.prompt),
        "candidates": [_response(candidate) for candidate in request.candidates],
        "top_n": request.top_n,
        "options": _options(request.options),
    }


def _score_reply(_: Any, __: int, body: bytes) -> Message:
    found = json.loads(body)
    items = [
        {**item, "scores": [_score(score) for score in item["scores"]]} for item in found["items"]
    ]
    return _message({**_made(found), "items": items}, reward_pb2.ScoreResponse())


def _rank_reply(_: Any, __: int, body: bytes) -> Message:
    found = json.loads(body)
    ranking = [
        {"index": _number(entry["index"]), "score": _score(entry["score"])}
        for entry in found["ranking"]
    ]
    return _message({**_made(found), "ranking": ranking}, reward_pb2.RankResponse())


def _made(found: Mapping[str, Any]) -> dict[str, Any]:
    """What made the numbers, and how long it took."""
    info = dict(found["info"])
    info["activation"] = f"ACTIVATION_{info['activation'].upper()}"
    info["compute_mode"] = f"COMPUTE_MODE_{info['compute_mode'].upper()}"
    timing = {name: f"{seconds:.9f}s" for name, seconds in found["timing"].items()}
    return {"info": info, "timing": timing}


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    steps = [
        {"score": _number(step["score"]), "token_index": _number(step["token_index"])}
        for step in score.get("steps", ())
    ]
    attributes = [
        {**attribute, "value": _number(attribute["value"])}
        for attribute in score.get("attributes", ())
    ]
    return {
        **score,
        "score": _number(score["score"]),
        "steps": steps,
        "attributes": attributes,
        "dropped": _dropped(score.get("dropped", ())),
    }


def _number(value: Any) -> float:
    """A number that must be there: protobuf reads null, and what is absent, as 0.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


def _dropped(names: Any) -> list[int]:
    """The kinds of dropped text.

    Raises:
        ValueError: one is not known; protobuf would leave it out.
    """
    return [reward_pb2.DroppedText.Value(f"DROPPED_TEXT_{name.upper()}") for name in names]


def _models_reply(_: Any, __: int, body: bytes) -> reward_pb2.ListModelsResponse:
    models = []
    for model in json.loads(body)["models"]:
        weights = model["attributes"].items()
        more = {
            "kind": f"MODEL_KIND_{model['kind'].upper()}",
            "compute_mode": f"COMPUTE_MODE_{model['compute_mode'].upper()}",
            "attributes": [{"name": name, "weight": weight} for name, weight in weights],
            "template_drops": _dropped(model["template_drops"]),
        }
        models.append({**model, **more})
    return _message({"models": models}, reward_pb2.ListModelsResponse())


def _model_reply(request: Any, status: int, body: bytes) -> reward_pb2.GetModelResponse:
    """The model that a name means, found in the list of all.

    Raises:
        NotFound: there is none.
        InvalidArgument: a revision's beginning is too short, or fits several.
    """
    name, at, revision = request.model.partition("@")
    named = [
        model
        for model in _models_reply(None, status, body).models
        if name in (model.name, *model.aliases)
    ]
    if not named:
        raise NotFound(f"there is no model {name!r}")
    name = named[0].name
    exact = [m for m in named if m.revision == revision]
    if at and not exact and len(revision) < _MIN_PREFIX:
        least = f"a revision needs at least {_MIN_PREFIX} characters"
        raise invalid("model", f"{least}, it has {len(revision)}")
    found = exact or [m for m in named if (m.revision.startswith(revision) if at else m.current)]
    if not found:
        raise NotFound(f"model {name!r} has no revision {revision[:80]!r}")
    if len(found) > 1:
        raise invalid("model", f"{revision!r} begins {len(found)} revisions of {name!r}")
    return reward_pb2.GetModelResponse(model=found[0])


def _health_reply(request: Any, status: int, _: bytes) -> Any:
    if request.service:
        raise Unimplemented("the health of one service is for gRPC alone: ask for the whole server")
    answer = health_pb2.HealthCheckResponse
    return answer(status=answer.SERVING if status == 200 else answer.NOT_SERVING)


def _message(values: dict[str, Any], message: M) -> M:
    """Values as a message.

    Raises:
        ValueError: they don't fit it.
    """
    try:
        return json_format.ParseDict(values, message, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def _get(_: Any) -> None:
    """No body: a GET."""


TWINS = {
    _SERVICE + "Score": Twin("/v1/score", _score_body, _score_reply),
    _SERVICE + "Rank": Twin("/v1/rank", _rank_body, _rank_reply),
    _SERVICE + "ListModels": Twin("/v1/models", _get, _models_reply),
    _SERVICE + "GetModel": Twin("/v1/models", _get, _model_reply),
    "/grpc.health.v1.Health/Check": Twin("/readyz", _get, _health_reply, (200, 503)),
}
"""Methods that HTTP has too, by their gRPC paths."""
