"""Preference data: what a row means. Shared by the command line and the trainer."""

from guerdon.data.conversations import (
    Message,
    Pair,
    RowError,
    as_messages,
    is_transcript,
    parse_pair,
    parse_transcript,
)

__all__ = [
    "Message",
    "Pair",
    "RowError",
    "as_messages",
    "is_transcript",
    "parse_pair",
    "parse_transcript",
]
