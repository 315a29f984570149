"""Weights that a trainer broadcasts by NCCL: taken by a process of its own, then staged as others.

A broadcast whose sender died never ends, and can't be interrupted from within. So a process that
can be killed (see `nccl_receive.py`) joins the trainer's group and hands the tensors over; the
policy goes on drawing meanwhile, and the tensors go through the checks of every other update.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence

from guerdon.sampler.engine.checkpoint_tensors import tensor_bytes
from guerdon.sampler.engine.staging import FileStaging, StagedFile
from guerdon.sampler.types import NcclSource, TensorSpec
from guerdon.serving.errors import InvalidRequest, UpdateRefused

JOINED = b"joined\n"
"""What the process says before the tensors' bytes; anything else is why it could not join."""

_PIECE = 4 * 1024 * 1024
_SECONDS = 600.0
_COMMAND = (sys.executable, "-m", "guerdon.sampler.engine.nccl_receive")
_WORLD, _RANK = 2, 1


def check_nccl(source: NcclSource) -> None:
    """Refuse what can't be received.

    Raises:
        UpdateRefused: says why.
    """
    import torch

    if not torch.cuda.is_available():
        raise UpdateRefused("this sampler has no CUDA GPU, so it takes no weights by NCCL")
    if (source.world_size, source.rank_offset) != (_WORLD, _RANK):
        raise UpdateRefused(
            f"by NCCL the trainer is rank 0 and the sampler rank {_RANK} of a world of {_WORLD}, "
            f"however many GPUs each has; not rank {source.rank_offset} of {source.world_size}"
        )


class NcclReceiver:
    """The process that receives. It is started when first needed, and kept while it works.

    Args:
        command: starts it.
        seconds: how long one update may take.
    """

    def __init__(self, command: Sequence[str] = _COMMAND, seconds: float = _SECONDS) -> None:
        self._command, self.seconds = command, seconds
        self._process: asyncio.subprocess.Process | None = None
        self._ending: set[asyncio.Future[None]] = set()

    async def stage(
        self, file: FileStaging, source: NcclSource, specs: Sequence[TensorSpec]
    ) -> NcclStaging:
        """Begin to receive: the trainer waits for us.

        Args:
            file: where the tensors go; closed if this fails.

        Raises:
            UpdateRefused: the process can't be asked.
        """
        try:
            process = await self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            asked = {
                "source": dataclasses.asdict(source),
                "specs": [dataclasses.asdict(spec) for spec in specs],
            }
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            # One that ended before it read this has said why on its output, which is read later.
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
        except BaseException as error:
            file.close()
            self.kill()
            if isinstance(error, OSError):
                raise UpdateRefused(f"the process that receives by NCCL: {error}") from error
            raise
        return NcclStaging(file, self, process.stdout, specs)

    async def _running(self) -> asyncio.subprocess.Process:
        kept = self._process
        if kept is not None and (kept.returncode is not None or _gone(kept)):
            self.kill()  # it ended while nothing was asked of it
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe
            )
        return self._process

    def leave(self) -> None:
        """Leave the group: all has come."""
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.write(b"null\n")

    def kill(self) -> None:
        """End the process, whatever it waits for; the next update starts another one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            ending = asyncio.ensure_future(_reap(process))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the process, and wait for its end."""
        self.kill()
        await asyncio.gather(*self._ending)


def _gone(process: asyncio.subprocess.Process) -> bool:
    """Whether its input is closed: that may be known before its exit status is."""
    assert process.stdin is not None
    return process.stdin.is_closing()


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Close the pipes of a process that was killed, and take its exit status."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    while await process.stdout.read(_PIECE):
        pass
    await process.wait()


class NcclStaging:
    """Implements `Staging` over what the process hands over."""

    def __init__(
        self,
        file: FileStaging,
        receiver: NcclReceiver,
        tensors: asyncio.StreamReader,
        specs: Sequence[TensorSpec],
    ) -> None:
        self._file, self._receiver, self._tensors, self._specs = file, receiver, tensors, specs
        self._whole = self._closed = False

    async def write(self, tensor: int, offset: int, data: bytes) -> None:
        """Nothing comes over the stream."""
        raise InvalidRequest("chunk", "comes only where the source is stream")

    async def finish(self, sha256: bytes) -> StagedFile:
        """Wait for all tensors, and check them; NCCL brings no checksum."""
        seconds = self._receiver.seconds
        try:
            async with asyncio.timeout(seconds):
                await self._take_all()
        except TimeoutError as error:
            raise UpdateRefused(f"the broadcast did not end within {seconds:g} s") from error
        except asyncio.IncompleteReadError as error:
            raise UpdateRefused("the broadcast broke off: the sampler's log says why") from error
        self._whole = True
        return await self._file.finish(sha256 or self._file.digest)

    async def _take_all(self) -> None:
        said = await self._tensors.readline()
        if said != JOINED:
            why = said.decode(errors="replace").strip() or "its receiver ended"
            raise UpdateRefused(f"the sampler could not join the trainer's NCCL group: {why}")
        for place, spec in enumerate(self._specs):
            size = tensor_bytes(spec)
            for offset in range(0, size, _PIECE):
                piece = await self._tensors.readexactly(min(_PIECE, size - offset))
                await self._file.write(place, offset, piece)

    def close(self) -> None:
        """Free what was staged unless it serves; a broadcast that is under way ends."""
        if not self._closed:
            self._closed = True
            if self._whole:
                self._receiver.leave()
            else:
                self._receiver.kill()
        self._file.close()
