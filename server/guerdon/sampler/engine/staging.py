"""A safetensors file of our own, in which the tensors of an update lie until they are checked.

It lies in shared memory where there is room, else in the temporary folder. Files that a dead
process left behind are removed at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from guerdon.sampler.engine.checkpoint_tensors import safetensors_header, tensor_bytes
from guerdon.sampler.types import TensorSpec
from guerdon.serving.errors import InvalidRequest, UpdateRefused

_PREFIX = "guerdon-weights-"
_TRIES = 3
_SPARE = 16 * 1024 * 1024
"""Bytes that stay free."""


class StagingArea:
    """Folders for this process's stagings, in shared memory and in the temporary folder."""

    def __init__(self) -> None:
        _remove_dead()
        self._folders: list[Path] = []
        self._locks: list[int] = []
        for place in _places():
            if os.access(place, os.W_OK):
                folder, lock = _new_folder(place)
                self._folders.append(folder)
                self._locks.append(lock)
        self._count = 0

    def new(self, specs: Sequence[TensorSpec]) -> FileStaging:
        """Room for tensors, in shared memory where they fit.

        Raises:
            UpdateRefused: there is no room.
        """
        needed = sum(map(tensor_bytes, specs))
        free = {folder: shutil.disk_usage(folder).free for folder in self._folders}
        folder = next((f for f in free if free[f] > needed + _SPARE), None)
        if folder is None:
            most = max(free.values(), default=0)
            raise UpdateRefused(f"{needed} bytes of weights, and room for {most}")
        self._count += 1
        return FileStaging(folder / f"{self._count:06d}.safetensors", specs)

    def close(self) -> None:
        """Remove everything."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        for lock in self._locks:
            os.close(lock)
        self._folders, self._locks = [], []


class StagedFile:
    """Checked tensors in a file, until `release`."""

    def __init__(self, path: Path, sha256: bytes) -> None:
        self.path = path
        self.sha256 = sha256
        self.kept = False
        """Whether it serves: then closing its staging leaves it."""

    def release(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


class FileStaging:
    """Writes tensors into one file, in their order, and checks them."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self._path, self._specs = path, specs
        self._digest = hashlib.sha256()
        self._tensor, self._offset = 0, 0
        self._file: BinaryIO | None = path.open("wb")
        self._file.write(safetensors_header(specs))
        self._staged: StagedFile | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of what came so far."""
        return self._digest.digest()

    async def write(self, tensor: int, offset: int, data: bytes) -> None:
        """Take a piece of a tensor."""
        self._pass_over_whole()
        if tensor >= len(self._specs):
            raise InvalidRequest("chunk.tensor", f"is {tensor}, there are {len(self._specs)}")
        spec = self._specs[tensor]
        if tensor != self._tensor:
            raise InvalidRequest("chunk.tensor", f"{spec.name} is out of order")
        if offset != self._offset:
            raise InvalidRequest("chunk.offset", f"of {spec.name} is {offset}, not {self._offset}")
        if offset + len(data) > tensor_bytes(spec):
            raise InvalidRequest("chunk.data", f"goes past the end of {spec.name}")
        await asyncio.to_thread(self._put, data)
        self._offset += len(data)

    def _put(self, data: bytes) -> None:
        assert self._file is not None, "the staging is closed"
        self._digest.update(data)
        self._file.write(data)

    def _pass_over_whole(self) -> None:
        while self._tensor < len(self._specs) and self._offset == tensor_bytes(
            self._specs[self._tensor]
        ):
            self._tensor, self._offset = self._tensor + 1, 0

    async def finish(self, sha256: bytes) -> StagedFile:
        """Check that every byte came, the checksum, and that all numbers are finite."""
        self._pass_over_whole()
        if self._tensor < len(self._specs):
            spec = self._specs[self._tensor]
            missing = tensor_bytes(spec) - self._offset
            raise UpdateRefused(f"{spec.name} lacks {missing} of its bytes")
        if self._digest.digest() != sha256:
            raise UpdateRefused("the checksum is not that of the tensors that came")
        assert self._file is not None, "the staging is closed"
        self._file.close()
        await asyncio.to_thread(_check_finite, self._path)
        self._staged = StagedFile(self._path, sha256)
        return self._staged

    async def copy(self, files: Sequence[Path]) -> None:
        """Take all tensors from files.

        Raises:
            UpdateRefused: a file can't be read.
        """
        from safetensors import SafetensorError

        try:
            await asyncio.to_thread(self._copy, files)
        except (OSError, SafetensorError) as error:
            raise UpdateRefused(f"the file can't be read: {error}") from error

    def _copy(self, files: Sequence[Path]) -> None:
        import torch
        from safetensors import safe_open

        with contextlib.ExitStack() as stack:
            places = {}
            for path in files:
                file = stack.enter_context(safe_open(path, framework="pt"))
                places.update(dict.fromkeys(file.keys(), file))
            for spec in self._specs:
                tensor = places[spec.name].get_tensor(spec.name).contiguous().reshape(-1)
                self._put(bytes(memoryview(tensor.view(torch.uint8).numpy())))
        self._tensor, self._offset = len(self._specs), 0

    def close(self) -> None:
        """Free what it holds, unless it serves."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if self._staged is None or not self._staged.kept:
                self._path.unlink(missing_ok=True)


def _check_finite(path: Path) -> None:
    """Refuse weights that would make every log-probability NaN."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        wrong = [n for n in file.keys() if not torch.isfinite(file.get_tensor(n)).all()]  # noqa: SIM118
    if wrong:
        raise UpdateRefused(f"numbers that are not finite in {', '.join(wrong[:5])}")


def _places() -> list[Path]:
    shared = Path("/dev/shm")  # noqa: S108 - the folder is made by mkdtemp, for us alone
    return [place for place in (shared, Path(tempfile.gettempdir())) if place.is_dir()]


def _new_folder(place: Path) -> tuple[Path, int]:
    """A folder, and the lock on it.

    Raises:
        OSError: there can be none.
    """
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        with contextlib.suppress(OSError):  # another process took it for a dead one's
            return folder, _lock(folder, os.O_CREAT)
    raise OSError(f"a folder in {place} can't be locked")


def _lock(folder: Path, flags: int = 0) -> int:
    """Say that the folder is in use, as long as this process lives.

    Raises:
        OSError: another process says so; or it has no lock, unless the flags make one.
    """
    file = os.open(folder / "lock", flags | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _remove_dead() -> None:
    """What processes left behind that were killed. A lock tells, even across containers."""
    for folder in [f for place in _places() for f in place.glob(f"{_PREFIX}*")]:
        with contextlib.suppress(OSError):  # in use, another user's, or not made by us
            lock = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
