"""Outputs of rows: standard output, or a file that survives `kill -9` at any moment.

A file is made in three steps, so that `out.jsonl` is whole or absent:

1.  Finished rows are appended, in the input's order, to `out.jsonl.part`. Beside it
    `.out.jsonl.state.json` says which command, model, revision and options make them.
2.  A later run with the same options reads the part file against the input, drops a
    half-written last line, and goes on with the first row that is missing.
3.  At the end the part file is synced and renamed to `out.jsonl`. The state file stays:
    it records what made the numbers, and tells a repeated command that nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.data import JsonLine

OWN_KEYS = frozenset({"scores", "ranking", "details", "error"})
"""What the command adds to a row. The same keys of an input row are replaced."""


class Output(Protocol):
    """Takes finished rows in order."""

    def kept(self, lines: Iterator[JsonLine]) -> Kept:
        """What an earlier run finished; its input is taken from `lines`."""

    def write(self, data: bytes) -> None:
        """Appends one or more whole lines."""

    def finish(self) -> None:
        """All rows are written."""

    def close(self) -> None:
        """Lets go of the file, finished or not."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier run of the same command left."""

    rows: int = 0
    failed: int = 0
    """Rows, of these, that have an error in place of scores."""
    complete: bool = False


class StreamOutput:
    """Rows to a pipe, a terminal or a device; nothing can be resumed."""

    def __init__(self, stream: BinaryIO, *, own: bool = False) -> None:
        self._stream = stream
        self._own = own

    def kept(self, lines: Iterator[JsonLine]) -> Kept:
        """Nothing."""
        return Kept()

    def write(self, data: bytes) -> None:
        """Appends lines, at once visible to the reader."""
        self._stream.write(data)
        self._stream.flush()

    def finish(self) -> None:
        """Flushes."""
        self._stream.flush()

    def close(self) -> None:
        """Closes what was opened for it; standard output stays."""
        if self._own:
            self._stream.close()


class _Phase(Enum):
    START = "start"
    RESUME = "resume"
    PUBLISHED = "published"


class FileOutput:
    """Rows to a file, resumable; see the module's text.

    Args:
        path: the file to make.
        provenance: what makes the rows (command, model, revision, options). A run is
            continued only under the same.
        restart: drop what an earlier run left.

    Raises:
        CommandError: what is there was not made by this command, or another run is
            writing it.
    """

    def __init__(self, path: Path, provenance: Mapping[str, Any], *, restart: bool) -> None:
        self.path = Path(os.path.realpath(path))
        self._part = self.path.with_name(self.path.name + ".part")
        self._state = self.path.with_name(f".{self.path.name}.state.json")
        self._provenance = dict(provenance)
        self._rows = 0
        phase = _Phase.START if restart else self._phase()
        self._published = phase is _Phase.PUBLISHED
        self._file = self.path.open("rb") if self._published else self._open_part()
        if phase is _Phase.START:
            self._begin()

    def kept(self, lines: Iterator[JsonLine]) -> Kept:
        """Compares what is there with the input, and stands after the last whole row.

        Raises:
            CommandError: a row there was not made from this input.
        """
        failed = 0
        self._file.seek(0)
        good = 0
        for data in self._file:
            row = _whole_row(data)
            if row is None:
                break
            self._compare(row, next(lines, None))
            good += len(data)
            self._rows += 1
            failed += row.get("error") is not None
        if not self._published:
            self._drop_after(good)
            return Kept(self._rows, failed)
        if self._file.tell() != good or next(lines, None) is not None:
            raise self._foreign(f"has only {self._rows} rows of this input")
        self._write_state("complete")  # a kill between the rename and this left it undone
        return Kept(self._rows, failed, complete=True)

    def write(self, data: bytes) -> None:
        """Appends whole lines and hands them to the system, so that `kill -9` keeps them."""
        self._file.write(data)
        self._file.flush()
        self._rows += data.count(b"\n")

    def finish(self) -> None:
        """Makes the file appear, whole."""
        os.fsync(self._file.fileno())
        self._write_state("publishing")
        if os.name == "nt":
            self._file.close()  # Windows renames no open file
        self._part.replace(self.path)
        self._sync_folder()
        self._write_state("complete")

    def close(self) -> None:
        """Closes the file; what is written stays for the next run."""
        self._file.close()

    def _phase(self) -> _Phase:
        state = self._read_state()
        part = self._part.stat().st_size if self._part.exists() else None
        if not part and not self.path.exists():
            return _Phase.START  # nothing is finished, whatever an old state file says
        if state is None:
            if self.path.exists():
                raise self._foreign("is already there")
            raise self._foreign("was left by another program", self._part)
        self._check_provenance(state)
        if part is not None:
            return _Phase.RESUME
        if state["status"] == "running":  # the part file was taken away by hand
            raise self._foreign("is already there")
        return _Phase.PUBLISHED

    def _check_provenance(self, state: Mapping[str, Any]) -> None:
        there = state["made_by"]
        for key, value in self._provenance.items():
            if there.get(key) != value:
                was, now = (json.dumps(v, ensure_ascii=False) for v in (there.get(key), value))
                raise CommandError(
                    f"{self.path} was begun with {key} {was}, and this run has {now}; "
                    "--restart scores everything again.",
                    ExitCode.USAGE,
                )

    def _open_part(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # the last on Windows
            file = os.fdopen(os.open(self._part, flags, 0o666), "r+b")
            try:
                self._lock(file)
                if _is_at(file, self._part):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # another run published it between our opening and locking it

    def _lock(self, file: BinaryIO) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"Another guerdon is writing {self.path} at this moment."
            raise CommandError(message, ExitCode.USAGE) from None

    def _begin(self) -> None:
        self._state.unlink(missing_ok=True)
        self._file.truncate(0)
        self._write_state("running")

    def _drop_after(self, good: int) -> None:
        """Drops a half-written last line; anything more than that is not ours."""
        self._file.seek(good)
        self._file.readline()
        if self._file.read(1):
            raise self._foreign(f"is damaged after row {self._rows}", self._part)
        self._file.truncate(good)
        self._file.seek(good)

    def _compare(self, row: Mapping[str, Any], line: JsonLine | None) -> None:
        if line is None:
            raise self._foreign(f"has more rows than this input ({self._rows} read)")
        if pass_through(row) != pass_through(line.row or {}):
            raise self._foreign(f"has a row that is not that of line {line.number} of this input")

    def _foreign(self, what: str, path: Path | None = None) -> CommandError:
        message = f"{path or self.path} {what}, so this run won't touch it; --restart replaces it."
        return CommandError(message, ExitCode.USAGE)

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state.read_bytes())
            if isinstance(state["status"], str) and isinstance(state["made_by"], dict):
                return dict(state)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        raise self._foreign("is not a state file of this program", self._state)

    def _write_state(self, status: str) -> None:
        state = {"status": status, "rows": self._rows, "made_by": self._provenance}
        if status == "running":
            del state["rows"]
        scratch = self._state.with_name(self._state.name + ".new")
        with scratch.open("wb") as file:
            file.write(json.dumps(state, indent=1, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._state)
        self._sync_folder()

    def _sync_folder(self) -> None:
        with contextlib.suppress(OSError):  # some file systems can't
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def pass_through(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is the user's."""
    return {key: value for key, value in row.items() if key not in OWN_KEYS}


def _whole_row(data: bytes) -> dict[str, Any] | None:
    if not data.endswith(b"\n"):
        return None
    try:
        row = json.loads(data)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one that bears the name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def open_output(path: Path | None, provenance: Mapping[str, Any], *, restart: bool) -> Output:
    """Standard output for None or `-`, a resumable file, or a device as it is.

    Raises:
        CommandError: the path can't be written to, or what is there is not ours.
    """
    if path is None or str(path) == "-":
        return StreamOutput(sys.stdout.buffer)
    if path.is_dir():
        raise CommandError(f"{path} is a folder, not a file.", ExitCode.USAGE)
    try:
        if path.exists() and not path.is_file():  # a pipe, or /dev/null
            return StreamOutput(path.open("wb"), own=True)
        return FileOutput(path, provenance, restart=restart)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise CommandError(f"Can't write {path}: {reason}.", ExitCode.USAGE) from exc
