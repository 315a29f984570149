"""Preference pairs from a file or a `datasets` data set, with a count of all that is odd."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.data import JsonLines, Pair, RowError, parse_pair
from guerdon.trainer.errors import DataError

_FILE_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".gz")


@dataclass(kw_only=True)
class Preferences:
    """The pairs of one source."""

    source: str
    sha256: str = ""
    """Of the file; empty for a `datasets` data set."""
    pairs: list[Pair] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Where each pair stood, from 1."""
    bad: list[RowError] = field(default_factory=list)
    """The rows that were skipped, with their lines."""
    duplicates: int = 0
    """Pairs that occurred before, word for word. They are kept."""
    contradictions: int = 0
    """Pairs whose opposite occurred before. They are kept."""

    @property
    def described(self) -> str:
        """The source, with its SHA-256 where it is a file."""
        return f"{self.source} sha256:{self.sha256}" if self.sha256 else self.source


def load_pairs(source: str, *, split: str, limit: int = 0, bad_rows: str = "stop") -> Preferences:
    """Read preference pairs.

    Args:
        source: a JSONL file (gzipped or not), a folder that `datasets` saved, or a data
            set's name.
        split: of a data set; a file has none.
        limit: stop after so many pairs; 0 reads all.
        bad_rows: `stop` or `skip`.

    Raises:
        DataError: no such source, a malformed row with `stop`, or no pair at all.
    """
    found = Preferences(source=source)
    if Path(source).is_file():
        with Path(source).open("rb") as handle:
            found.sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        rows = _file_rows(Path(source))
    elif source.endswith(_FILE_ENDINGS):
        raise DataError(f"there is no file {source!r}")
    else:
        rows = _dataset_rows(source, split)
    for number, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            pair = parse_pair(row)
        except RowError as error:
            if bad_rows == "stop":
                raise DataError(f"{source}, {error.at(number)}") from error
            found.bad.append(error.at(number))
            continue
        found.pairs.append(pair)
        found.lines.append(number)
        if limit and len(found.pairs) == limit:
            break
    if not found.pairs:
        raise DataError(f"{source} holds no preference pair")
    _count_repeats(found)
    return found


def shared_prompts(train: Preferences, held_out: Preferences) -> int:
    """How many held-out pairs have a prompt that is trained on: a leak when not zero."""
    known = {_key(pair.prompt) for pair in train.pairs}
    return sum(_key(pair.prompt) in known for pair in held_out.pairs)


def _file_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    with JsonLines(path) as lines:
        for line in lines:
            assert line.row is not None or line.error is not None
            yield line.number, line.row if line.row is not None else line.error  # type: ignore[misc]


def _dataset_rows(source: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    try:
        if Path(source).is_dir() and not any(Path(source).glob("*.parquet")):
            data = datasets.load_from_disk(source)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(source, split=split)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source!r} is neither a file nor a data set with a split {split!r}: {reason}"
        ) from error
    yield from enumerate(data, start=1)


def _count_repeats(found: Preferences) -> None:
    seen: set[tuple[str, str, str]] = set()
    for pair in found.pairs:
        prompt, chosen, rejected = _key(pair.prompt), _key(pair.chosen), _key(pair.rejected)
        found.duplicates += (prompt, chosen, rejected) in seen
        found.contradictions += (prompt, rejected, chosen) in seen
        seen.add((prompt, chosen, rejected))


def _key(turns: Any) -> str:
    return json.dumps(turns, sort_keys=True)
