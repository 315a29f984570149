"""The folder of a run: what may be there before, and what every recipe writes."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from guerdon.settings import to_toml, without_retired
from guerdon.trainer.common.errors import OutputError

SETTINGS = "config.toml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
DATA = "data.json"
MEMBERS = "members"


class RunFolder:
    """A run's folder. Making the object looks only; `begin` writes.

    Args:
        settings: of the run that is about to start: a dataclass with an `output`.
        resume: go on with what is there.
        overwrite: remove what is there, when it is a run of ours.
        main: whether this is the process that writes; the others neither look nor write.

    Raises:
        OutputError: something is there and neither was asked, or it can't be used so.
    """

    may_change: frozenset[str] = frozenset({"output"})
    """Settings that a resumed run may have other values of."""

    def __init__(self, settings: Any, *, resume: bool, overwrite: bool, main: bool = True) -> None:
        self.path = Path(settings.output)
        self._settings = settings
        self._overwrite = overwrite
        self._main = main
        if not main:
            return
        if resume and overwrite:
            raise OutputError("--resume and --overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if overwrite and not (self.path / SETTINGS).exists():
            raise OutputError(f"{self.path} is not a run of ours ({SETTINGS} is missing)")
        if resume:
            self._check_same()
        if not resume and not overwrite:
            raise OutputError(
                f"{self.path} is not empty: --resume goes on with it, --overwrite begins anew"
            )

    @property
    def metrics(self) -> Path:
        """The file of logged numbers."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """The checkpoints from which a run is resumed."""
        return self.path / CHECKPOINTS

    @property
    def plots(self) -> Path:
        """The pictures."""
        return self.path / PLOTS

    def summary(self) -> dict[str, Any]:
        """What summary.json says.

        Raises:
            OutputError: it can't be read.
        """
        try:
            found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"can't read {self.path / SUMMARY}: {error}") from error
        return found

    def begin(self) -> None:
        """Make the folder, remove what shall be overwritten, and write the settings.

        Raises:
            OutputError: the system refuses.
        """
        if not self._main:
            return
        try:
            if self._overwrite and self.path.is_dir():
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / SETTINGS, to_toml(self._settings))
        except OSError as error:
            raise OutputError(f"can't write to {self.path}: {error}") from error

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check_same(self) -> None:
        try:
            before = tomllib.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"nothing to resume in {self.path}: {error}") from error
        before = _defaults(self._settings) | without_retired(type(self._settings), before)
        now = tomllib.loads(to_toml(self._settings))
        for key in sorted((before.keys() | now.keys()) - self.may_change):
            if before.get(key) != now.get(key):
                raise OutputError(
                    f"{self.path} was begun with {key} = {before.get(key)!r}, not "
                    f"{now.get(key)!r}: resume with the same settings"
                )

    def check_data(self, place: Path, hashes: Mapping[str, str]) -> None:
        """Refuse to go on with other data than the run began with; where it begins, remember them.

        Args:
            place: a folder in this one, made if need be, that is there as long as the run goes on.
            hashes: SHA-256 of each source.

        Raises:
            OutputError: a source has changed, or the system refuses.
        """
        if not self._main:
            return
        try:
            before = json.loads((place / DATA).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        for source, found in hashes.items():
            if before.get(source, found) != found:
                raise OutputError(f"{source} has changed since the run in {self.path} began")
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / DATA, json.dumps(hashes))
        except OSError as error:
            raise OutputError(f"can't write to {place}: {error}") from error

    def metrics_until(self, step: int) -> list[dict[str, Any]]:
        """The metrics of an earlier part of the run; what came after `step` is forgotten."""
        return kept_rows(self.metrics, lambda row: row["step"] <= step) if self._main else []


def _defaults(settings: Any) -> dict[str, Any]:
    """The defaults of settings that came after a run began, which went by them."""
    return {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in fields(settings)
        if field.default is not MISSING and field.default is not None
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint that a trainer of transformers has written, or None."""
    whole = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        # trainer_state.json is the last file that transformers writes into one.
        if (path / "trainer_state.json").exists()
    ]
    return max(whole)[1] if whole else None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write a JSON file that people read, whole or not at all."""
    text = json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a JSONL file; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def kept_rows(
    path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda row: True
) -> list[dict[str, Any]]:
    """The rows of a JSONL file that are wanted; the others are taken out of it.

    Nothing is wanted from the first row on that is not whole: the run was killed as it wrote it.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows, lines = [], []
    for line in text.split("\n")[:-1]:  # what follows the last newline is not whole
        try:
            row = json.loads(line)
        except ValueError:
            break
        if wanted(row):
            rows.append(row)
            lines.append(line + "\n")
    if "".join(lines) != text:
        write_whole(path, "".join(lines))
    return rows


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
