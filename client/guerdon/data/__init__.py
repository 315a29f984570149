"""Preference data: what a row means. Shared by the command line and the trainer."""

from guerdon.data.conversations import (
    Demonstration,
    Message,
    Pair,
    RowError,
    as_messages,
    check_text,
    check_turns,
    is_transcript,
    parse_demonstration,
    parse_pair,
    parse_prompt,
    parse_transcript,
)
from guerdon.data.jsonl import JsonLines, Line, read_jsonl, write_row
from guerdon.data.questions import Question, parse_questions
from guerdon.data.rendering import (
    REASONING,
    ROLES,
    ControlTokens,
    Dropped,
    Missing,
    dropped_by,
    missing_text,
    roles_named_in,
    unknown_role,
)

__all__ = [
    "REASONING",
    "ROLES",
    "ControlTokens",
    "Demonstration",
    "Dropped",
    "JsonLines",
    "Line",
    "Message",
    "Missing",
    "Pair",
    "Question",
    "RowError",
    "as_messages",
    "check_text",
    "check_turns",
    "dropped_by",
    "is_transcript",
    "missing_text",
    "parse_demonstration",
    "parse_pair",
    "parse_prompt",
    "parse_questions",
    "parse_transcript",
    "read_jsonl",
    "roles_named_in",
    "unknown_role",
    "write_row",
]
