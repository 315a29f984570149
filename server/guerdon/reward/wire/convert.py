"""Between the wire's messages and the domain's types; names every field at fault."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.data import checked_answer
from guerdon.data.conversation_protos import message_from_proto
from guerdon.reward import types
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.wire.convert import check_id, duration, field_values, prompt, tokens
from guerdon.v1 import common_pb2, reward_pb2

MIXED_FORMS = "a prompt of token ids needs responses of token ids, and no other prompt takes them"


_KINDS = {each: reward_pb2.ModelKind.Value(f"MODEL_KIND_{each.name}") for each in types.ModelKind}
_MODES = {
    each: reward_pb2.ComputeMode.Value(f"COMPUTE_MODE_{each.name}") for each in types.ComputeMode
}
_DROPPED = {
    each: reward_pb2.DroppedText.Value(f"DROPPED_TEXT_{each.name}") for each in types.Dropped
}
_ACTIVATION_PROTOS = {
    each: reward_pb2.Activation.Value(f"ACTIVATION_{each.name}") for each in types.Activation
}
_ACTIVATIONS = {proto: each for each, proto in _ACTIVATION_PROTOS.items()} | {
    reward_pb2.ACTIVATION_UNSPECIFIED: types.Activation.NONE
}
_PRIORITIES = {
    common_pb2.PRIORITY_CLASS_UNSPECIFIED: types.PriorityClass.ONLINE,
    common_pb2.PRIORITY_CLASS_ONLINE: types.PriorityClass.ONLINE,
    common_pb2.PRIORITY_CLASS_BATCH: types.PriorityClass.BATCH,
}
_TRUNCATIONS = {
    reward_pb2.TRUNCATION_UNSPECIFIED: types.Truncation.REJECT,
    reward_pb2.TRUNCATION_REJECT: types.Truncation.REJECT,
    reward_pb2.TRUNCATION_PROMPT_LEFT: types.Truncation.PROMPT_LEFT,
}


def options(message: reward_pb2.ScoreOptions, field: str = "options") -> types.ScoreOptions:
    """Options, with the defaults of the protocol."""
    for name, known in (
        ("priority", _PRIORITIES),
        ("truncation", _TRUNCATIONS),
        ("activation", _ACTIVATIONS),
    ):
        if getattr(message, name) not in known:
            raise InvalidRequest(f"{field}.{name}", f"{getattr(message, name)} is not known")
    return types.ScoreOptions(
        priority=_PRIORITIES[message.priority],
        truncation=_TRUNCATIONS[message.truncation],
        activation=_ACTIVATIONS[message.activation],
        normalize=message.normalize,
        reject_dropped_text=message.reject_dropped_text,
        reject_control_tokens=message.reject_control_tokens,
    )


def items(request: reward_pb2.ScoreRequest, limits: RequestLimits) -> list[types.ScoreItem]:
    """The items of a request.

    Raises:
        InvalidRequest: with a path such as `items[3].responses[0].text`.
    """
    check_item_counts([len(message.responses) for message in request.items], limits)
    return [item(m, limits, f"items[{i}]") for i, m in enumerate(request.items)]


def check_item_counts(responses: Sequence[int], limits: RequestLimits) -> None:
    """Refuse a request with no items or too many, by the number of responses in each."""
    if not responses:
        raise InvalidRequest("items", "at least one is required")
    if len(responses) > limits.max_items:
        raise InvalidRequest(
            "items", f"there are {len(responses)}, the limit is {limits.max_items}"
        )
    total = sum(responses)
    if total > limits.max_total_responses:
        raise InvalidRequest(
            "items", f"they hold {total} responses, the limit is {limits.max_total_responses}"
        )


def item(message: reward_pb2.ScoreItem, limits: RequestLimits, field: str) -> types.ScoreItem:
    """One item; `field` is its path in the request."""
    check_id(f"{field}.id", message.id, limits.max_id_length)
    return types.ScoreItem(
        prompt=prompt(message.prompt, f"{field}.prompt"),
        responses=responses(message, f"{field}.responses", limits),
        id=message.id,
    )


def candidates(request: reward_pb2.RankRequest, limits: RequestLimits) -> types.ScoreItem:
    """What is to be ranked, as one item."""
    messages = request.candidates
    check_response_count("candidates", len(messages), limits)
    is_tokens = request.prompt.WhichOneof("content") == "token_ids"
    return types.ScoreItem(
        prompt=prompt(request.prompt, "prompt"),
        responses=tuple(
            _response(m, f"candidates[{i}]", is_tokens) for i, m in enumerate(messages)
        ),
    )


def responses(
    message: reward_pb2.ScoreItem, field: str, limits: RequestLimits
) -> tuple[types.Response, ...]:
    """The responses of an item."""
    check_response_count(field, len(message.responses), limits)
    is_tokens = message.prompt.WhichOneof("content") == "token_ids"
    return tuple(_response(m, f"{field}[{i}]", is_tokens) for i, m in enumerate(message.responses))


def check_response_count(field: str, count: int, limits: RequestLimits) -> None:
    """Refuse an item with no responses or too many."""
    if not count:
        raise InvalidRequest(field, "at least one is required")
    if count > limits.max_responses:
        raise InvalidRequest(field, f"there are {count}, the limit is {limits.max_responses}")


def _response(message: common_pb2.Response, field: str, is_tokens: bool) -> types.Response:
    form = message.WhichOneof("content")
    if form is None:
        raise InvalidRequest(field, "one of text, token_ids and message is required")
    if (form == "token_ids") != is_tokens:
        raise InvalidRequest(f"{field}.{form}", MIXED_FORMS)
    if form == "text":
        return message.text
    if form == "token_ids":
        return tokens(message.token_ids, f"{field}.token_ids")
    path = f"{field}.message"
    turn = message_from_proto(message.message, path, InvalidRequest)
    return checked_answer(turn, path, InvalidRequest)


def response_score(score: types.ResponseScore, info: types.ModelInfo) -> reward_pb2.ResponseScore:
    """What a model says of one response."""
    return reward_pb2.ResponseScore(
        score=score.score,
        steps=[
            reward_pb2.StepScore(score=step.score, token_index=step.token_index)
            for step in score.steps
        ],
        attributes=[
            reward_pb2.AttributeScore(name=attribute.name, value=value)
            for attribute, value in zip(info.attributes, score.attributes, strict=True)
        ]
        if score.attributes
        else [],
        members=score.members,
        spread=score.spread,
        token_count=score.token_count,
        reused_tokens=score.reused_tokens,
        truncated_tokens=score.truncated_tokens,
        dropped=[_DROPPED[part] for part in score.dropped],
        tokens_hash=score.tokens_hash,
    )


def model_info(
    info: types.ModelInfo, *, current: bool, aliases: tuple[str, ...]
) -> reward_pb2.ModelInfo:
    """A loaded revision."""
    other = {
        "kind": _KINDS[info.kind],
        "compute_mode": _MODES[info.compute_mode],
        "attributes": [
            reward_pb2.AttributeInfo(name=a.name, weight=a.weight) for a in info.attributes
        ],
        "template_drops": [_DROPPED[part] for part in info.template_drops],
    }
    values = field_values(info) | other
    del values["regression"], values["label"]  # what other systems' formats go by
    del values["prefix_cache_tokens"], values["preemptible"]  # what the log says at load
    return reward_pb2.ModelInfo(current=current, aliases=aliases, **values)


def item_scores(items: Sequence[types.ScoreItem], scored: Scored) -> list[reward_pb2.ItemScores]:
    """The scores of every item, in the order of the request."""
    return [
        reward_pb2.ItemScores(
            id=item.id, scores=[response_score(score, scored.info) for score in scores]
        )
        for item, scores in zip(items, scored.items, strict=True)
    ]


def scoring_info(scored: Scored) -> reward_pb2.ScoringInfo:
    """What made the numbers."""
    info, chosen = scored.info, scored.options
    return reward_pb2.ScoringInfo(
        model=info.name,
        revision=info.revision,
        activation=_ACTIVATION_PROTOS[chosen.activation],
        normalized=chosen.normalize,
        mean=info.mean if chosen.normalize else None,
        std=info.std if chosen.normalize else None,
        chat_template_hash=info.chat_template_hash,
        compute_mode=_MODES[info.compute_mode],
    )


def timing(scored: Scored, total: float) -> common_pb2.Timing:
    """The times that a call took; `total` is in seconds."""
    return common_pb2.Timing(
        queue=duration(scored.queue_seconds),
        tokenize=duration(scored.tokenize_seconds),
        compute=duration(scored.compute_seconds),
        total=duration(total),
    )
