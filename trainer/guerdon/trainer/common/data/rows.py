"""Rows of training data, from a file or a `datasets` data set, with what is wrong with others."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from guerdon.data import (
    DAMAGED_GZIP,
    FileFormat,
    JsonLines,
    RowError,
    decompressed,
    file_format,
    read_json_array,
)
from guerdon.models import file_hash
from guerdon.trainer.common.errors import DataError

T = TypeVar("T")

SHOWN_LINES, SHOWN_ERRORS = 20, 5
"""Line numbers and reasons that are named, of each kind of bad or odd row."""
_FILE_ENDINGS = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv", ".arrow", ".zst")
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files of a folder that `datasets` saved; one of Parquet files, as hubs have them, lacks them."""
_PARQUET_BATCH = 256
_OWN_KEYS = ("tools", "tool_calls", "chat_template_kwargs")
"""Fields whose objects have keys of their own in each row."""
MAX_ARRAY_BYTES = 1 << 30
"""Largest JSON array, decompressed: it is in memory whole."""

_HERE = Path(__file__).parents[2]
PROJECT_DATA = {
    "helpful-train": _HERE / "demo_data" / "train.jsonl",
    "helpful-eval": _HERE / "demo_data" / "eval.jsonl",
    **{
        f"{task}-{split}": _HERE / "rl" / "tasks" / f"{task}-{split}.jsonl"
        for task in ("questions", "arithmetic")
        for split in ("train", "eval")
    },
}
"""The project's own data by name: preference pairs, prompts, and sums with their answers."""


@dataclass(kw_only=True)
class Rows(Generic[T]):
    """The rows of one source, parsed."""

    source: str
    sha256: str = ""
    """The file's SHA-256; empty for a `datasets` data set."""
    rows: list[T] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The line at which each row stood, from 1."""
    bad: list[RowError] = field(default_factory=list)
    """The rows that were skipped, with their lines."""


class Source(Protocol):
    """Data of a run."""

    @property
    def source(self) -> str:
        """File or data set."""

    @property
    def sha256(self) -> str:
        """The file's SHA-256; empty for a data set."""


def described(data: Source) -> str:
    """The source, with its SHA-256 where it is a file."""
    return f"{data.source} sha256:{data.sha256}" if data.sha256 else data.source


def hashes_by_source(*parts: Source) -> dict[str, str]:
    """SHA-256 of each part, by its source."""
    return {part.source: part.sha256 for part in parts}


def where_odd(bad: Sequence[RowError], noted: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Lines of bad and odd rows, and what is wrong with the first of the bad ones.

    Args:
        bad: rows that were skipped.
        noted: lines of others, by what they are.
    """
    kinds: dict[str, Sequence[Any]] = {"bad_rows": [error.line for error in bad], **noted}
    return {
        "lines": {kind: lines[:SHOWN_LINES] for kind, lines in kinds.items() if lines},
        "errors": [str(error) for error in bad[:SHOWN_ERRORS]],
    }


def data_file(source: str) -> Path:
    """The file that a path or a name of `PROJECT_DATA` means; a path that exists wins."""
    path = Path(source)
    return path if path.exists() else PROJECT_DATA.get(source, path)


def _known() -> str:
    return f"(the project's own data: {', '.join(PROJECT_DATA)})"


def read_rows(
    source: str,
    parse: Callable[[Mapping[str, Any]], T],
    *,
    split: str,
    limit: int = 0,
    bad_rows: str = "stop",
) -> Rows[T]:
    """Read and parse rows.

    Args:
        source: a file of JSON Lines or a JSON array (gzipped or not) or of Parquet, a name of
            `PROJECT_DATA`, a folder that `datasets` saved or that holds Parquet files, or a data
            set's name, perhaps with `:CONFIGURATION`.
        parse: makes of a row what it means, or raises `RowError`.
        split: of a data set; a file has none.
        limit: stop after so many good rows; 0 reads all.
        bad_rows: `stop` or `skip`.

    Raises:
        DataError: no such source, or a malformed row with `stop`.
    """
    found: Rows[T] = Rows(source=source)
    if data_file(source).is_file():
        found.sha256 = file_hash(data_file(source))
    for number, row in source_rows(source, split):
        try:
            if isinstance(row, RowError):
                raise row
            parsed = parse(row)
        except RowError as error:
            if bad_rows == "stop":
                raise DataError(f"{source}, {error.at(number)}") from error
            found.bad.append(error.at(number))
            continue
        found.rows.append(parsed)
        found.lines.append(number)
        if limit and len(found.rows) == limit:
            break
    return found


def source_rows(source: str, split: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows of a file or a data set with their numbers from 1.

    Args:
        source: as for `read_rows`.
        split: of a data set.

    Raises:
        DataError: there is no such source, or it can't be read.
    """
    if data_file(source).is_file():
        return file_rows(source)
    if source.endswith(_FILE_ENDINGS):
        raise DataError(f"there is no file {source!r} {_known()}")
    return _dataset_rows(source, split)


def file_rows(source: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows of a file with their numbers from 1: lines of JSON Lines, else places.

    Args:
        source: a path, or a name of `PROJECT_DATA`.

    Raises:
        DataError: the file can't be read, or is neither JSON Lines nor a JSON array nor Parquet.
    """
    path = str(data_file(source))
    try:
        found = file_format(path)
        if found is FileFormat.PARQUET:
            yield from enumerate(_parquet_rows(path), start=1)
        elif found is FileFormat.JSON_ARRAY:
            yield from enumerate(read_json_array(path, MAX_ARRAY_BYTES), start=1)
        else:
            with JsonLines(path) as lines:
                for line in lines:
                    assert line.row is not None or line.error is not None
                    yield line.number, line.row if line.row is not None else line.error  # type: ignore[misc]
    except FileNotFoundError as error:
        raise DataError(f"can't read {source}: {error.strerror} {_known()}") from error
    except OSError as error:
        raise DataError(f"can't read {source}: {error.strerror or error}") from error
    except RowError as error:
        raise DataError(f"{source}: {error}") from error


def _parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                yield from map(_as_written, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is damaged or no Parquet file: {error}") from error


def _dataset_rows(source: str, split: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    import datasets

    try:
        if any(Path(source, name).is_file() for name in _SAVED):
            data = datasets.load_from_disk(source)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            name, _, configuration = (
                (source, "", "") if Path(source).exists() else source.partition(":")
            )
            data = datasets.load_dataset(name, configuration or None, split=split)
    except ConnectionError as error:
        raise DataError(f"{source!r} is no file, and the hub can't be asked for it: {error}") from (
            error
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source!r} is neither a file nor a data set with a split {split!r} {_known()}: "
            f"{reason}"
        ) from error
    yield from enumerate(map(_as_written, data), start=1)


def _as_written(value: Any, *, own_keys: bool = False) -> Any:
    """A row of Arrow without the nulls that tools and tool calls did not have when it was written.

    Arrow gives every object of a column the same keys, so that the arguments of one tool call get
    those of all others.

    Args:
        value: a row, or a part of one.
        own_keys: whether null, in an object, is a key that it did not have.
    """
    if isinstance(value, Mapping):
        return {
            key: _as_written(entry, own_keys=own_keys or key in _OWN_KEYS)
            for key, entry in value.items()
            if entry is not None or not own_keys
        }
    if isinstance(value, list) and value and isinstance(value[0], Mapping | list):
        return [_as_written(entry, own_keys=own_keys) for entry in value]
    return value


_LONGEST_CELL = 16 << 20
"""Characters of a cell."""


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV, by its name, or by a header of training data's columns."""
    named = path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    return path.is_file() and (named or file_format(path) is FileFormat.CSV)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows under the header, one after another, with the line that each begins at, from 1.

    Every cell is text as it stands, and an empty one is None.

    Raises:
        DataError: the file can't be read, or its header names no columns.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open("rb") as raw:
            text = io.TextIOWrapper(decompressed(raw), encoding="utf-8-sig", newline="")
            yield from _rows(text, path)
    except (OSError, *DAMAGED_GZIP, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't read {path}: {error}") from error


def _rows(text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    first = text.readline()
    delimiter = max(",\t;", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    if not all(header) or len(set(header)) != len(header) or not header:
        raise DataError(f"{path}: line 1 must name every column once, and is {first.strip()!r}")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    begins = 2
    for cells in reader:
        if len(cells) == len(header):
            yield begins, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        elif cells:  # a blank line is no row
            reason = f"has {len(cells)} cells, and the header has {len(header)}"
            yield begins, RowError("", reason)
        begins = reader.line_num + 2


_SHOWN = 10
"""Columns that are named where none is like the one that is missing."""


def missing_column(name: str, columns: Collection[str], option: str = "") -> str:
    """What to say of a column that a row lacks: the nearest of those that it has, or all of them.

    Args:
        name: of the column.
        columns: that the row has.
        option: that names the column, where one does.
    """
    if name in columns or not columns:  # it has no value
        return "is missing"
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f" ({option})" if option else ""
    if near:
        return f"is missing; did you mean {near[0]!r}?{hint}"
    more = ", …" if len(columns) > _SHOWN else ""
    return f"is missing; the columns are {', '.join(list(columns)[:_SHOWN])}{more}{hint}"
