"""Between the client's values and the messages of `guerdon.v1`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from guerdon.client import types as t
from guerdon.client.config import ScoringOptions
from guerdon.client.errors import Internal, invalid
from guerdon.data import Conversation, all_texts
from guerdon.data import Message as Turn
from guerdon.data.conversation_protos import conversation_to_proto, message_to_proto
from guerdon.v1 import common_pb2, reward_pb2

R = TypeVar("R")

_OVERHEAD = 16
"""Bytes of tags and lengths around one text or list, at most."""

_PRIORITY = {"online": common_pb2.PRIORITY_CLASS_ONLINE, "batch": common_pb2.PRIORITY_CLASS_BATCH}
_TRUNCATION = {
    "reject": reward_pb2.TRUNCATION_REJECT,
    "prompt_left": reward_pb2.TRUNCATION_PROMPT_LEFT,
}
_ACTIVATION = {"none": reward_pb2.ACTIVATION_NONE, "sigmoid": reward_pb2.ACTIVATION_SIGMOID}


def options(given: ScoringOptions) -> reward_pb2.ScoreOptions:
    """The options as a message.

    Raises:
        InvalidArgument: one has a value that is not known.
        TypeError: one is not known.
    """
    unknown = set(given) - set(ScoringOptions.__annotations__)
    if unknown:
        known = ", ".join(ScoringOptions.__annotations__)
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; there are {known}")
    return reward_pb2.ScoreOptions(
        priority=_choice(_PRIORITY, "priority", given.get("priority", "online")),
        truncation=_choice(_TRUNCATION, "truncation", given.get("truncation", "reject")),
        activation=_choice(_ACTIVATION, "activation", given.get("activation", "none")),
        normalize=bool(given.get("normalize", False)),
        reject_dropped_text=bool(given.get("reject_dropped_text", False)),
        reject_control_tokens=bool(given.get("reject_control_tokens", False)),
    )


def _choice(table: dict[str, Any], field: str, value: object) -> Any:
    if not isinstance(value, str) or value not in table:
        raise invalid(field, f"{value!r} is not one of {', '.join(table)}")
    return table[value]


def prompt_bytes(prompt: t.Prompt, where: str) -> int:
    """Bytes of the prompt's message, at most.

    Raises:
        InvalidArgument: its text is not valid Unicode.
    """
    if isinstance(prompt, str):
        return _text_bytes(prompt, where)
    if isinstance(prompt, t.FormattedText):
        return _text_bytes(prompt.text, where)
    if isinstance(prompt, t.TokenIds):
        return _OVERHEAD + 5 * len(prompt.ids)
    return _conversation_bytes(_conversation(prompt), where)


def response_bytes(response: t.Response, where: str) -> int:
    """Bytes of the response's message, at most.

    Raises:
        InvalidArgument: its text is not valid Unicode.
    """
    if isinstance(response, t.TokenIds):
        return _OVERHEAD + 5 * len(response.ids)
    if isinstance(response, str):
        return _text_bytes(response, where)
    return _conversation_bytes(Conversation([_message(response)]), where)


def _conversation_bytes(conversation: Conversation, where: str) -> int:
    """Bytes of its message, at most: JSON, with its names, is longer than protobuf."""
    return _OVERHEAD + sum(_text_bytes(text, where) for text in all_texts(conversation))


def _text_bytes(text: str, where: str) -> int:
    if text.isascii():
        return _OVERHEAD + len(text)
    try:
        return _OVERHEAD + len(text.encode())
    except UnicodeEncodeError as error:
        reason = f"is not valid Unicode at character {error.start} (a lone surrogate)"
        raise invalid(where, reason) from None


def prompt(value: t.Prompt) -> common_pb2.Prompt:
    """The prompt as a message."""
    if isinstance(value, str):
        return common_pb2.Prompt(text=value)
    if isinstance(value, t.FormattedText):
        return common_pb2.Prompt(formatted_text=value.text)
    if isinstance(value, t.TokenIds):
        return common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=value.ids))
    return common_pb2.Prompt(conversation=conversation_to_proto(_conversation(value)))


def _conversation(value: Conversation | Sequence[Mapping[str, object]]) -> Conversation:
    """A prompt's messages, which `Item` has checked."""
    if isinstance(value, Conversation):
        return value
    return Conversation(cast("Sequence[Turn]", value))


def _message(value: Mapping[str, object]) -> Turn:
    """A response's message, which `Item` has checked."""
    return cast("Turn", value)


def response(value: t.Response) -> common_pb2.Response:
    """The response as a message."""
    if isinstance(value, str):
        return common_pb2.Response(text=value)
    if isinstance(value, t.TokenIds):
        return common_pb2.Response(token_ids=common_pb2.TokenIds(ids=value.ids))
    return common_pb2.Response(message=message_to_proto(_message(value)))


def item(value: t.Item, start: int = 0, stop: int | None = None) -> reward_pb2.ScoreItem:
    """The item as a message, with the responses from `start` to `stop`."""
    return reward_pb2.ScoreItem(
        id=value.id,
        prompt=prompt(value.prompt),
        responses=[response(r) for r in value.responses[start:stop]],
    )


def duration(seconds: float) -> Duration:
    """Seconds as a message, at least one microsecond."""
    message = Duration()
    message.FromMicroseconds(max(1, int(seconds * 1e6)))
    return message


def score(message: reward_pb2.ResponseScore) -> t.Score:
    """One response's score.

    Raises:
        Internal: it is not a finite number, which no server may send.
    """
    if not math.isfinite(message.score):
        raise Internal(f"the server sent {message.score}, which is not a score")
    return t.Score(
        score=message.score,
        steps=tuple(t.StepScore(step.score, step.token_index) for step in message.steps),
        attributes={attribute.name: attribute.value for attribute in message.attributes},
        members=tuple(message.members),
        spread=message.spread if message.HasField("spread") else None,
        token_count=message.token_count,
        reused_tokens=message.reused_tokens,
        truncated_tokens=message.truncated_tokens,
        dropped=_dropped(message.dropped),
        tokens_hash=message.tokens_hash,
    )


def item_scores(message: reward_pb2.ItemScores, expected: int, id: str) -> t.ItemScores:
    """One item's scores.

    Raises:
        Internal: the reply does not fit the request; it is never cut or filled up.
    """
    if len(message.scores) != expected:
        raise Internal(f"the server sent {len(message.scores)} scores for {expected} responses")
    if message.id != id:
        raise Internal(f"the server sent item {message.id!r} in the place of {id!r}")
    return t.ItemScores(message.id, tuple(score(s) for s in message.scores))


def info(message: reward_pb2.ScoringInfo) -> t.ScoringInfo:
    """What made the numbers.

    Raises:
        Internal: the server does not say which revision.
    """
    if not message.model or not message.revision:
        raise Internal("the server does not say which model and revision made the scores")
    return record(
        t.ScoringInfo,
        message,
        activation="sigmoid" if message.activation == reward_pb2.ACTIVATION_SIGMOID else "none",
        compute_mode=_compute_mode(message.compute_mode),
    )


def timing(message: common_pb2.Timing) -> t.Timing:
    """How long the parts of a request took."""
    return t.Timing(
        queue=_seconds(message.queue),
        tokenize=_seconds(message.tokenize),
        compute=_seconds(message.compute),
        total=_seconds(message.total),
    )


def rank_result(message: reward_pb2.RankResponse, candidates: int, top_n: int) -> t.RankResult:
    """An ordering.

    Raises:
        Internal: it is not an ordering of the candidates.
    """
    places = [entry.index for entry in message.ranking]
    expected = min(top_n or candidates, candidates)
    if len(set(places)) != expected or len(places) != expected or max(places) >= candidates:
        raise Internal(f"the server's ranking does not fit {candidates} candidates")
    ranking = tuple(t.RankedCandidate(e.index, score(e.score)) for e in message.ranking)
    return t.RankResult(ranking, info(message.info), timing(message.timing))


def model_info(message: reward_pb2.ModelInfo) -> t.ModelInfo:
    """A model."""
    kind = reward_pb2.ModelKind.Name(message.kind).removeprefix("MODEL_KIND_").lower()
    return record(
        t.ModelInfo,
        message,
        kind=kind,
        # Servers from before the field are silent about their pairwise models.
        ranks_only=message.ranks_only or kind == "pairwise",
        compute_mode=_compute_mode(message.compute_mode),
        attributes=tuple(t.AttributeInfo(a.name, a.weight) for a in message.attributes),
        template_drops=_dropped(message.template_drops),
    )


def record(kind: type[R], message: Message, /, **others: Any) -> R:
    """A message as a record: lists become tuples, and what is not set None.

    Args:
        others: fields that the message has in another form.
    """
    found = {}
    for name in (each.name for each in fields(cast(Any, kind)) if each.name not in others):
        field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        if field.is_repeated:
            value = tuple(value)
        elif field.has_presence and not message.HasField(name):
            value = None
        found[name] = value
    return kind(**found, **others)


def merge_timing(parts: Sequence[t.Timing], total: float) -> t.Timing:
    """The time of several requests that make one call."""
    if len(parts) == 1:
        return parts[0]
    return t.Timing(
        queue=max(part.queue for part in parts),
        tokenize=sum(part.tokenize for part in parts),
        compute=sum(part.compute for part in parts),
        total=total,
    )


def _dropped(values: Iterable[int]) -> tuple[str, ...]:
    """Names of what was left out; of a newer server's kinds, their numbers."""
    known = reward_pb2.DroppedText.DESCRIPTOR.values_by_number
    names = [known[value].name if value in known else str(value) for value in values]
    return tuple(name.removeprefix("DROPPED_TEXT_").lower() for name in names)


_COMPUTE_MODES: Mapping[int, t.ComputeMode] = {
    reward_pb2.COMPUTE_MODE_PACKED: "packed",
    reward_pb2.COMPUTE_MODE_PADDED: "padded",
    reward_pb2.COMPUTE_MODE_REMOTE: "remote",
}


def _compute_mode(value: int) -> t.ComputeMode:
    return _COMPUTE_MODES.get(value, "unspecified")


def _seconds(value: Duration) -> float:
    return value.ToMicroseconds() / 1e6
