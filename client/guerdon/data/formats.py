"""What a file holds, by its first bytes: rows come as JSON Lines, and much else has rows too."""

from __future__ import annotations

import csv
import json
import re
from enum import StrEnum

_BOM = b"\xef\xbb\xbf"
_COLUMNS = frozenset({
    "prompt", "chosen", "rejected", "response", "responses", "completion", "completions",
    "messages", "question", "answer", "instruction", "input", "output", "text", "label",
})  # fmt: skip
"""Columns of training data, by which a first line is known as the header of a table."""
_HEADER_CELL = re.compile(r"[\w .-]{1,60}")


class FileFormat(StrEnum):
    """The kind of a file, as it is called in an error."""

    JSON_LINES = "JSON Lines"
    PARQUET = "Parquet"
    JSON_ARRAY = "a JSON array"
    JSON_DOCUMENT = "JSON over several lines"
    CSV = "CSV"
    ARROW = "Arrow"
    UTF_16 = "UTF-16 text"
    ZIP = "a ZIP archive"
    ZSTD = "compressed by zstd"
    BZIP2 = "compressed by bzip2"
    XZ = "compressed by xz"
    LFS = "a pointer of Git LFS, not the data"
    HTML = "a web page"


_MAGIC = (
    (b"PAR1", FileFormat.PARQUET),
    (b"ARROW1", FileFormat.ARROW),
    (b"\xff\xff\xff\xff", FileFormat.ARROW),
    (b"\xff\xfe", FileFormat.UTF_16),
    (b"\xfe\xff", FileFormat.UTF_16),
    (b"PK\x03\x04", FileFormat.ZIP),
    (b"\x28\xb5\x2f\xfd", FileFormat.ZSTD),
    (b"BZh", FileFormat.BZIP2),
    (b"\xfd7zXZ\x00", FileFormat.XZ),
    (b"version https://git-lfs", FileFormat.LFS),
)
ADVICE = {
    FileFormat.PARQUET: "make lines of it with `datasets`: "
    'Dataset.from_parquet("in.parquet").to_json("out.jsonl")',
    FileFormat.JSON_ARRAY: "make lines of it: jq -c '.[]' in.json > out.jsonl",
    FileFormat.JSON_DOCUMENT: "write one object a line: jq -c . in.json > out.jsonl",
    FileFormat.CSV: "its cells have no types; make lines of it with `pandas`: "
    'read_csv("in.csv").to_json("out.jsonl", orient="records", lines=True)',
    FileFormat.LFS: "git lfs pull fetches it",
}
"""What to do with some formats that are not read."""


def recognise(head: bytes) -> FileFormat:
    """The format of a file that begins so (gunzipped); JSON Lines where nothing else shows.

    Args:
        head: its first bytes, some thousand where there are so many.
    """
    for magic, found in _MAGIC:
        if head.startswith(magic):
            return found
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"["):
        return FileFormat.JSON_ARRAY
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return FileFormat.HTML
    line, newline, _ = text.partition(b"\n")
    if newline and line.strip() == b"{":
        return FileFormat.JSON_DOCUMENT
    return FileFormat.CSV if newline and _is_header(line) else FileFormat.JSON_LINES


def _is_header(line: bytes) -> bool:
    """Whether a line names the columns of a table of training data."""
    try:
        text = line.decode().strip()
        json.loads(text)
    except json.JSONDecodeError:
        pass
    except UnicodeDecodeError:
        return False
    else:
        return False
    for delimiter in ",\t;":
        cells = [cell.strip().casefold() for cell in next(csv.reader([text], delimiter=delimiter))]
        if len(cells) > 1 and _COLUMNS & set(cells) and all(map(_HEADER_CELL.fullmatch, cells)):
            return True
    return False
