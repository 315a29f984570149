"""JSON Lines as people have them: gzipped or not, with a BOM, blank lines, broken rows.

One reader for the command line and the trainer. It streams, so memory stays bounded by
the longest line, and every fault names its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, cast

from guerdon.data.conversations import RowError

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


MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is refused without being held in memory."""

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a damaged gzip file raises."""


_HEAD_BYTES = 4096


class NotJsonLines(RowError):
    """The file holds something else; says what, and what to do."""

    def __init__(self, found: FileFormat) -> None:
        advice = f": {ADVICE[found]}" if found in ADVICE else ""
        super().__init__("", f"the file is {found}, not JSON Lines{advice}")


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One line that is not blank: a row, or why it is none."""

    number: int
    """The line's place from 1, blank lines counted."""
    row: dict[str, Any] | None
    error: RowError | None = None


class JsonLines:
    """The lines of a file or a pipe, one after another; a bad one does not end it.

    Args:
        source: a path, or an open binary stream such as `sys.stdin.buffer`. Gzip is
            recognised by its first bytes, whatever the name.

    Raises:
        OSError: the file can't be opened or read.
        NotJsonLines: it is Parquet, a JSON array, CSV or the like.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self._own = isinstance(source, str | Path)
        self._raw = open_binary(source)
        self._stream = decompressed(self._raw)
        self._number = 0
        found = _format(self._stream)
        if found is not FileFormat.JSON_LINES:
            self.close()
            raise NotJsonLines(found)

    def close(self) -> None:
        """Closes the file, if it was opened here."""
        if self._own:
            self._raw.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seekable(self) -> bool:
        """Whether it is a file, not a pipe."""
        return self._raw.seekable()

    def position(self) -> int:
        """Bytes read of the file as it lies on disk, for a progress bar."""
        return self._raw.tell() if self._raw.seekable() else 0

    def __iter__(self) -> Iterator[JsonLine]:
        while True:
            try:
                data = self._next_line()
            except DAMAGED_GZIP as exc:
                number = self._number + 1
                error = RowError("gzip", f"the data is damaged or cut short ({exc})", line=number)
                yield JsonLine(number, None, error)
                return
            if data is None:
                return
            if isinstance(data, RowError):
                yield JsonLine(self._number, None, data)
            elif data.strip():
                yield _parse(data, self._number)

    def _next_line(self) -> bytes | RowError | None:
        """The next line; None at the end, an error for one that is too long."""
        data = self._stream.readline(MAX_LINE_BYTES + 1)
        if not data:
            return None
        self._number += 1
        if self._number == 1:
            data = data.removeprefix(_BOM)
        if len(data) <= MAX_LINE_BYTES or data.endswith(b"\n"):
            return data
        while data and not data.endswith(b"\n"):  # leave the rest of the line unread in memory
            data = self._stream.readline(1 << 20)
        reason = f"is longer than {MAX_LINE_BYTES // (1024 * 1024)} MiB"
        return RowError("", reason, line=self._number)


def read_jsonl(source: str | Path | BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file (gzipped or not) with their line numbers, from 1.

    Blank lines are passed over, a byte order mark is dropped.

    Raises:
        OSError: the file can't be opened or read.
        RowError: a line is not a JSON object in UTF-8, `.line` says which; or the file holds no
            JSON Lines at all.
    """
    with JsonLines(source) as lines:
        for line in lines:
            if line.row is None:
                assert line.error is not None
                raise line.error
            yield line.number, line.row


def open_binary(source: str | Path | BinaryIO) -> io.BufferedReader:
    """A file, or a stream that is open already, as a buffered reader that can peek."""
    if isinstance(source, str | Path):
        return Path(source).open("rb")
    if isinstance(source, io.BufferedReader):
        return source
    return io.BufferedReader(cast(io.RawIOBase, source))


def file_format(path: str | Path) -> FileFormat:
    """What a file holds, gzipped or not.

    Raises:
        OSError: it can't be opened or read.
    """
    with Path(path).open("rb") as raw:
        return _format(decompressed(raw))


def read_json_array(path: str | Path, most: int) -> list[dict[str, Any] | RowError]:
    """The entries of a file that is one JSON array, gzipped or not, whole in memory.

    Args:
        path: of the file.
        most: bytes of it, decompressed.

    Raises:
        OSError: the file can't be opened or read.
        RowError: it is not JSON in UTF-8, or longer.
    """
    with Path(path).open("rb") as raw:
        try:
            data = decompressed(raw).read(most + 1)
            if len(data) > most:
                raise RowError(
                    "",
                    f"is a JSON array of over {most >> 20} MiB, which is read whole: write JSON "
                    "Lines, which is read line by line",
                )
            entries = _loaded(data.removeprefix(_BOM), None)
        except DAMAGED_GZIP as exc:
            raise RowError("gzip", f"the data is damaged or cut short ({exc})") from exc
    assert isinstance(entries, list), "a JSON array"
    return [
        entry if isinstance(entry, dict) else RowError("", "must be a JSON object", line=number)
        for number, entry in enumerate(entries, start=1)
    ]


def _format(stream: io.BufferedReader) -> FileFormat:
    try:
        return recognise(stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
    except DAMAGED_GZIP:
        return FileFormat.JSON_LINES  # reading the lines says what is wrong


def decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    """The content of an open file: itself, or what it holds where its first bytes are gzip's."""
    if raw.peek(2)[:2] == _GZIP_MAGIC:
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)), 1 << 16)
    return raw


def _parse(data: bytes, number: int) -> JsonLine:
    try:
        return JsonLine(number, _row(data, number))
    except RowError as exc:
        return JsonLine(number, None, exc)


def _row(data: bytes, number: int) -> dict[str, Any]:
    row = _loaded(data, number)
    if not isinstance(row, dict):
        raise RowError("", "must be a JSON object", line=number)
    return row


def _loaded(data: bytes, number: int | None) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        reason = f"is not valid UTF-8 (byte {exc.start + 1})"
        raise RowError("", reason, line=number) from None
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as exc:
        reason = f"is not JSON: {exc.msg} (column {exc.colno})"
        raise RowError("", reason, line=number) from None
    except RecursionError:
        raise RowError("", "is nested too deeply", line=number) from None
    except ValueError as exc:  # a number that JSON or Python can't hold
        raise RowError("", f"is not JSON: {exc}", line=number) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def write_row(row: dict[str, Any]) -> bytes:
    """A row as one line of JSON in UTF-8, newline included.

    An unpaired surrogate, which UTF-8 can't hold, is escaped, as it was in the input.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False).encode() + b"\n"
