"""Short ways to write requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from guerdon.v1 import common_pb2, reward_pb2


def prompt(value: str | Sequence[int] | Sequence[tuple[str, str]]) -> common_pb2.Prompt:
    """Text, token ids, or (role, content) turns."""
    if isinstance(value, str):
        return common_pb2.Prompt(text=value)
    if value and isinstance(value[0], int):
        return common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=value))  # type: ignore[arg-type]
    turns = [common_pb2.ChatMessage(role=r, content=c) for r, c in value]  # type: ignore[misc]
    return common_pb2.Prompt(conversation=common_pb2.Conversation(messages=turns))


def response(value: str | Sequence[int]) -> common_pb2.Response:
    """Text or token ids."""
    if isinstance(value, str):
        return common_pb2.Response(text=value)
    return common_pb2.Response(token_ids=common_pb2.TokenIds(ids=value))


def item(
    asked: Any = "what is rain", *answers: str | Sequence[int], id: str = ""
) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        id=id, prompt=prompt(asked), responses=[response(a) for a in answers or ("water",)]
    )


def score_request(*items: reward_pb2.ScoreItem, model: str = "m", **options: Any) -> Any:
    return reward_pb2.ScoreRequest(
        model=model, items=items or [item()], options=reward_pb2.ScoreOptions(**options)
    )


def field_at_fault(status: status_pb2.Status) -> str:
    """The field that google.rpc.BadRequest names."""
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    return str(bad.field_violations[0].field)


def retry_seconds(status: status_pb2.Status) -> float:
    """What google.rpc.RetryInfo says."""
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return float(info.retry_delay.ToTimedelta().total_seconds())
