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

__all__ = [
    "Demonstration",
    "JsonLines",
    "Line",
    "Message",
    "Pair",
    "Question",
    "RowError",
    "as_messages",
    "check_text",
    "check_turns",
    "is_transcript",
    "parse_demonstration",
    "parse_pair",
    "parse_prompt",
    "parse_questions",
    "parse_transcript",
    "read_jsonl",
    "write_row",
]
