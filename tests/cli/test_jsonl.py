"""The JSONL reader: what it accepts, and which line it blames."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.data import JsonLines, NotJsonLines, RowError, read_jsonl, write_row
from guerdon.data import jsonl as module

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(st.text(), values, max_size=5)
blanks = st.lists(st.sampled_from([b"\n", b"  \n", b"\r\n"]), max_size=2).map(b"".join)


@given(st.lists(st.tuples(blanks, rows)), st.booleans(), st.booleans(), st.booleans())
def test_rows_read_back_with_their_line_numbers(
    parts: list[tuple[bytes, dict[str, Any]]], bom: bool, last_newline: bool, zipped: bool
) -> None:
    data, expected = b"", []
    for blank, row in parts:
        data += blank + write_row(row)
        expected.append((data.count(b"\n"), row))
    if not last_newline:
        data = data.removesuffix(b"\n")
    data = b"\xef\xbb\xbf" * bom + data
    stream = io.BytesIO(gzip.compress(data) if zipped else data)
    assert list(read_jsonl(stream)) == expected


@given(st.text(st.characters()))  # with unpaired surrogates
def test_a_row_is_written_so_that_any_json_reader_reads_it_back(text: str) -> None:
    line = write_row({"text": text})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"text": text}


@given(st.binary())
def test_any_bytes_are_rows_or_a_row_error(data: bytes) -> None:
    try:
        lines = list(JsonLines(io.BytesIO(data)))
    except NotJsonLines:
        return
    for line in lines:
        assert (line.row is None) is (line.error is not None)
        assert line.number >= 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "is not JSON: Expecting property name"),
        (b'{"a": 1} x', "is not JSON: Extra data (column 10)"),
        (b"[1]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b'{"a": "\xff"}', "is not valid UTF-8 (byte 8)"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "is nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "is not valid UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_the_next_is_read(bad: bytes, reason: str) -> None:
    data = b'{"n": 1}\n\n' + bad + b'\n{"n": 4}\n'
    lines = list(JsonLines(io.BytesIO(data)))
    assert [line.number for line in lines][:2] == [1, 3]
    assert lines[0].row == {"n": 1}
    assert lines[-1].row == {"n": 4}
    error = lines[1].error
    assert isinstance(error, RowError)
    assert reason in str(error)
    assert str(error).startswith("line 3: ")
    with pytest.raises(RowError) as caught:
        list(read_jsonl(io.BytesIO(data)))
    assert caught.value.line == 3


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_rows(data: bytes) -> None:
    assert list(read_jsonl(io.BytesIO(data))) == []


def test_a_long_line_is_read_and_a_giant_one_refused_without_being_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "x" * 10_000_000
    assert list(read_jsonl(io.BytesIO(write_row({"a": text})))) == [(1, {"a": text})]
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1024 * 1024)
    lines = list(JsonLines(io.BytesIO(write_row({"a": text}) + b'{"b": 2}')))
    assert "longer than 1 MiB" in str(lines[0].error)
    assert (lines[1].number, lines[1].row) == (2, {"b": 2})


def test_gzip_is_known_by_its_content_and_damage_is_named(tmp_path: Path) -> None:
    data = gzip.compress(b'{"a": 1}\n{"a": 2}\n' * 1000)
    path = tmp_path / "rows.jsonl"  # no .gz in the name
    path.write_bytes(data)
    assert len(list(read_jsonl(path))) == 2000
    path.write_bytes(data[:-20])
    with pytest.raises(RowError, match="damaged or cut short"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"PAR1\x15\x04\x15", "Parquet, not JSON Lines: make lines of it"),
        (b'\xef\xbb\xbf [\n{"prompt": "a"}]', "a JSON array, not JSON Lines: make lines of it: jq"),
        (b'{\n  "prompt": "a"\n}', "JSON over several lines, not JSON Lines: write one object a"),
        (b"prompt,chosen,rejected\na,b,c\n", "CSV, not JSON Lines: its cells have no types"),
        (b'"prompt"\t"answer"\na\tb\n', "CSV, not JSON Lines"),
        (b"ARROW1\x00\x00", "Arrow, not JSON Lines"),
        (b"PK\x03\x04\x14", "a ZIP archive, not JSON Lines"),
        (b"\x28\xb5\x2f\xfd\x24", "compressed by zstd, not JSON Lines"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16 text, not JSON Lines"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the data"),
        (b"<!DOCTYPE html>\n<html>", "a web page, not JSON Lines"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_another_format_is_named(data: bytes, name: str, zipped: bool) -> None:
    stream = io.BytesIO(gzip.compress(data) if zipped else data)
    with pytest.raises(NotJsonLines) as caught:
        list(read_jsonl(stream))
    assert str(caught.value).startswith(f"the file is {name}")


@pytest.mark.parametrize("first", [b"{ ,", b"hello, world", b'{"prompt": 1},', b"text", b"\xff"])
def test_a_first_line_that_is_merely_wrong_is_a_bad_line(first: bytes) -> None:
    lines = list(JsonLines(io.BytesIO(first + b'\n{"n": 1}\n')))
    assert lines[-1].row == {"n": 1}
    assert lines[0].error is not None
