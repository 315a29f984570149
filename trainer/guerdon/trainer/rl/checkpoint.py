"""Checkpoints for --resume: whole or not there, and never one in another's place.

    checkpoints/step-000010/
        <part>.json, <part>.safetensors    each part of the run's state
        manifest.json                      size and SHA-256 of every file above

A checkpoint is written aside, brought to the disk, and renamed. So a run that is killed at
any moment leaves the earlier ones as they were. One that was damaged later is told by its
manifest, and the one before it is taken.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.models import file_hash
from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.run_folder import sync, write_whole
from guerdon.trainer.rl.state_files import StateError, read_tree, write_tree

_MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")
"""A checkpoint's folder. Copies of a step that is saved again are counted: the earlier one goes
after it is whole."""
_PART = ".part-"


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """A whole checkpoint on the disk."""

    step: int
    """Published updates of the policy when it was written."""
    path: Path
    parts: tuple[str, ...]

    def load(self, part: str) -> Any:
        """One part's tree, with tensors on the CPU.

        Raises:
            OutputError: there is no such part, or it can't be read.
        """
        if part not in self.parts:
            raise OutputError(f"{self.path} has no {part}: it is of another version of guerdon")
        try:
            return read_tree(self.path / part)
        except StateError as error:
            raise OutputError(f"{self.path}: {error}") from error


class Checkpoints:
    """The checkpoints of a run. Only the main process of a run may save.

    Args:
        folder: where they are.
        keep: how many stay; older ones go when a new one is whole.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, parts: Mapping[str, Any]) -> TrainingCheckpoint:
        """Write a checkpoint; the older ones over `keep` are removed after it.

        Args:
            step: published updates of the policy.
            parts: trees as in `state_files`, by names that can be file names.

        Raises:
            OutputError: the system refuses; the earlier checkpoints are as they were.
            StateError: a part holds what can't be written.
        """
        target = self._free(step)
        part = self._folder / f"{_PART}{target.name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for key, tree in parts.items():
                write_tree(part / key, tree)
            _seal(part, step, tuple(parts))
            part.rename(target)
            sync(self._folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise OutputError(f"can't write a checkpoint to {self._folder}: {error}") from error
        self._prune(step)
        return TrainingCheckpoint(step, target, tuple(parts))

    def latest(self) -> TrainingCheckpoint | None:
        """The newest whole checkpoint, or None; a warning names each damaged one."""
        for step, path in self._found():
            try:
                return _verified(step, path)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"{path} is damaged and is left out: {error}", stacklevel=2)
        return None

    def forget_after(self, step: int) -> None:
        """Remove what is newer: damaged ones, behind which a resumed run begins."""
        for found, path in self._found():
            if found > step:
                _remove(path)

    def _free(self, step: int) -> Path:
        """A name after those of all checkpoints of this step."""
        copies = [copy for found, copy, _ in self._copies() if found == step]
        name = f"step-{step:06d}"
        return self._folder / (f"{name}-{max(copies) + 1}" if copies else name)

    def _found(self) -> list[tuple[int, Path]]:
        """Steps and folders, newest first."""
        return [(step, path) for step, _, path in sorted(self._copies(), reverse=True)]

    def _copies(self) -> list[tuple[int, int, Path]]:
        if not self._folder.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self._folder.iterdir()]
        return [(int(match[1]), int(match[2] or 0), path) for match, path in matches if match]

    def _prune(self, step: int) -> None:
        """Keep the newest; what is after this step was left behind by a run that went back."""
        self.forget_after(step)
        for _, path in self._found()[self._keep :]:
            _remove(path)
        for path in self._folder.glob(f"{_PART}*"):
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Under another name first: half a checkpoint must not look like one."""
    gone = path.with_name(f"{_PART}old-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _seal(folder: Path, step: int, parts: tuple[str, ...]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    found = {"format": _FORMAT, "step": step, "parts": parts, "files": files}
    write_whole(folder / _MANIFEST, json.dumps(found, indent=1) + "\n")
    sync(folder / _MANIFEST)
    sync(folder)


def _verified(step: int, path: Path) -> TrainingCheckpoint:
    found = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    if found["format"] != _FORMAT:
        raise ValueError(f"its format is {found['format']}, not {_FORMAT}")
    if found["step"] != step:
        raise ValueError(f"it is of step {found['step']}")
    for name, of in found["files"].items():
        file = path / name
        if file.stat().st_size != of["bytes"] or file_hash(file) != of["sha256"]:
            raise ValueError(f"{name} is not what was written")
    return TrainingCheckpoint(step, path, tuple(found["parts"]))
