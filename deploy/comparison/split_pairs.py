"""The preference pairs in two halves that share no prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guerdon.data import read_jsonl
from guerdon.trainer.common.run_folder import write_whole

NAMES = ("proxy", "heldout")


def split_pairs(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs by prompt: of each category every second prompt, in the file's order, is held out."""
    counts: dict[str, int] = {}
    place: dict[str, int] = {}
    for row in rows:
        prompt = key(row)
        if prompt not in place:
            category = row["category"]
            place[prompt] = counts.get(category, 0) % 2
            counts[category] = counts.get(category, 0) + 1
    first, second = ([row for row in rows if place[key(row)] == half] for half in (0, 1))
    return first, second


def key(row: dict[str, Any]) -> str:
    """What two pairs of one prompt have in common."""
    return json.dumps(row["prompt"], sort_keys=True)


def write_halves(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write both halves, the same whenever it is asked; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, rows in zip(NAMES, split_pairs([row for _, row in read_jsonl(source)]), strict=True):
        path = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(path, text)
        found.append(path)
    return found[0], found[1]
