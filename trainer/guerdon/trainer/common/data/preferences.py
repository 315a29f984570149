"""Preference pairs from a file or a `datasets` data set, with a count of all that is odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guerdon.data import Message, Pair, message_text, parse_pair
from guerdon.trainer.common.data.row_notes import group_values, read_margin
from guerdon.trainer.common.data.rows import Rows, read_rows
from guerdon.trainer.common.data.same_prompts import conversation_key, prompt_key
from guerdon.trainer.common.errors import DataError


@dataclass(kw_only=True)
class Preferences(Rows[Pair]):
    """The pairs of one source."""

    duplicate_lines: list[int] = field(default_factory=list)
    """Lines of pairs that occurred before, word for word. They are kept."""
    contradiction_lines: list[int] = field(default_factory=list)
    """Lines of pairs whose opposite occurred before. They are kept."""
    empty_lines: list[int] = field(default_factory=list)
    """Lines of pairs of which an answer says nothing. They are kept."""
    margins: list[float] = field(default_factory=list)
    """The margin of each pair; empty when none were asked for."""
    groups: list[dict[str, str]] = field(default_factory=list)
    """Values of the fields that were asked for, of each pair."""
    unused_margins: int = 0
    """Rows with a field `margin` that was not asked for."""


def load_pairs(
    source: str,
    *,
    split: str,
    limit: int = 0,
    bad_rows: str = "stop",
    margin_key: str = "",
    by: Sequence[str] = (),
) -> Preferences:
    """Read preference pairs.

    Args:
        source: a JSONL file (gzipped or not), a folder that `datasets` saved, or a data
            set's name.
        split: of a data set; a file has none.
        limit: stop after so many pairs; 0 reads all.
        bad_rows: `stop` or `skip`.
        margin_key: field that holds each pair's margin; a row without one is malformed. Empty
            reads none.
        by: fields whose values are kept as groups.

    Raises:
        DataError: no such source, a malformed row with `stop`, or no pair at all.
    """

    def parse(row: Mapping[str, Any]) -> tuple[Pair, float, dict[str, str], bool]:
        margin = read_margin(row, margin_key) if margin_key else 0.0
        unused = not margin_key and row.get("margin") is not None
        return parse_pair(row), margin, group_values(row, by), unused

    rows = read_rows(source, parse, split=split, limit=limit, bad_rows=bad_rows)
    found = Preferences(
        source=source,
        sha256=rows.sha256,
        rows=[row[0] for row in rows.rows],
        lines=rows.lines,
        bad=rows.bad,
        margins=[row[1] for row in rows.rows] if margin_key else [],
        groups=[row[2] for row in rows.rows],
        unused_margins=sum(row[3] for row in rows.rows),
    )
    if not found.rows:
        raise DataError(f"{source} holds no preference pair")
    _look(found)
    return found


def shared_prompts(train: Preferences, held_out: Preferences) -> int:
    """How many held-out pairs have a prompt that is trained on: a leak when not zero."""
    known = {prompt_key(pair) for pair in train.rows}
    return sum(prompt_key(pair) in known for pair in held_out.rows)


def says(turn: Message) -> bool:
    """Whether a turn says or calls anything."""
    return bool(message_text(turn).strip()) or "tool_calls" in turn


def _look(found: Preferences) -> None:
    seen: set[tuple[str, str, str]] = set()
    for pair, line in zip(found.rows, found.lines, strict=True):
        if not (any(map(says, pair.chosen)) and any(map(says, pair.rejected))):
            found.empty_lines.append(line)
        prompt = prompt_key(pair)
        chosen, rejected = conversation_key(pair.chosen), conversation_key(pair.rejected)
        if (prompt, chosen, rejected) in seen:
            found.duplicate_lines.append(line)
        if (prompt, rejected, chosen) in seen:
            found.contradiction_lines.append(line)
        seen.add((prompt, chosen, rejected))
