"""Between the messages that services share and the domain's types; names fields at fault."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from guerdon.data.conversation_protos import conversation_from_proto
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.prompts import MAX_TOKEN_ID, FormattedText, Prompt, TokenArray
from guerdon.serving.waiting import MAX_TIMEOUT
from guerdon.v1 import common_pb2

_CHUNK = 16_384


def prompt(message: common_pb2.Prompt, field: str) -> Prompt:
    """A prompt in any of its forms."""
    form = message.WhichOneof("content")
    if form is None:
        raise InvalidRequest(
            field, "one of conversation, text, formatted_text and token_ids is required"
        )
    if form == "text":
        return message.text
    if form == "formatted_text":
        return FormattedText(message.formatted_text)
    if form == "token_ids":
        return tokens(message.token_ids, f"{field}.token_ids")
    if not message.conversation.messages:
        raise InvalidRequest(f"{field}.conversation.messages", "at least one is required")
    return conversation_from_proto(message.conversation, f"{field}.conversation", InvalidRequest)


def tokens(message: common_pb2.TokenIds, field: str) -> TokenArray:
    """Token ids; at least one."""
    if not message.ids:
        raise InvalidRequest(f"{field}.ids", "at least one is required")
    # In pieces: each holds the interpreter's lock for a millisecond or so.
    pieces = [message.ids[at : at + _CHUNK] for at in range(0, len(message.ids), _CHUNK)]
    wide = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    return narrow_tokens(wide, f"{field}.ids")


def narrow_tokens(wide: np.ndarray[tuple[int], np.dtype[np.int64]], field: str) -> TokenArray:
    """Token ids as int32; which ids the vocabulary has, the model knows.

    Raises:
        InvalidRequest: an id is negative, or larger than any vocabulary.
    """
    bad = np.flatnonzero((wide < 0) | (wide > MAX_TOKEN_ID))
    if bad.size:
        raise InvalidRequest(f"{field}[{bad[0]}]", f"{wide[bad[0]]} is no token's number")
    return wide.astype(np.int32)


def check_id(field: str, value: str, most: int) -> None:
    """Refuse an id that is too long to be one."""
    if len(value) > most:
        raise InvalidRequest(field, f"has {len(value)} characters, the limit is {most}")


def check_count(field: str, count: int, most: int) -> None:
    """Refuse more of something than a request may hold."""
    if count > most:
        raise InvalidRequest(field, f"there are {count}, the limit is {most}")


def field_values(record: Any) -> dict[str, Any]:
    """The fields of a record by name, for a message that has them too."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration, in whole microseconds."""
    micros = round(max(seconds, 0.0) * 1e6)
    return Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def timeout(message: Duration, field: str) -> float:
    """A positive duration in seconds.

    Raises:
        InvalidRequest: it is zero, negative, longer than `MAX_TIMEOUT`, or no valid duration.
    """
    seconds = message.seconds + message.nanos / 1e9
    if not -1_000_000_000 < message.nanos < 1_000_000_000 or message.seconds * message.nanos < 0:
        raise InvalidRequest(field, "is not a valid duration")
    if not 0 < seconds <= MAX_TIMEOUT:
        raise InvalidRequest(
            field, f"is {seconds:g} s, it must be more than 0 and at most {MAX_TIMEOUT:.0f} s"
        )
    return seconds
